"""Claims about training-time recipes.

Statistical ones heal the bundled model: 100 steps of 512 tokens of the calibration text, every
block linear under the recipe, judged by the loss on 8k held-out tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from blockwright import pipeline
from blockwright.cli.demo import bundled_model
from blockwright.registry import recipe_named
from blockwright.texts import bundled_documents, load_tokenizer
from blockwright.training import TokenStream, TrainingSettings, mean_loss, train
from blockwright.training.places import under_recipe
from blockwright.training.recipes.bdwp import Bdwp, both_ways, ideal_step_speedup
from blockwright.training.recipes.masksparsity import GatedMatrix, MaskSparsity
from blockwright.training.recipes.nested import Nested, NestedMatrix, at_halving
from blockwright.training.recipes.pgf import Pgf
from blockwright.types import Budget, FitRequest, Preset
from tests.claims.ledger import Grade, claim
from tests.models import BLOCKS, random_model
from tests.training.cases import at, matrix_of, normal, tokens, trained

SEEDS = (0, 1, 2)
STEPS, BATCH_TOKENS, LENGTH = 100, 512, 256
HEALING = f"bundled model healed {STEPS} steps of {BATCH_TOKENS} tokens, 8k held-out tokens"


@cache
def documents(split: str) -> list[Tensor]:
    tokenizer = load_tokenizer(bundled_model())
    ids = [tokenizer(text)["input_ids"] for text in bundled_documents(split)]
    return [torch.tensor([tokenizer.bos_token_id, *found]) for found in ids]


def heldout_loss(model: LlamaForCausalLM) -> float:
    return mean_loss(model, torch.cat(documents("heldout"))[:8_192], LENGTH, 2048)


def settings(seed: int, steps: int = STEPS, learning_rate: float = 3e-4) -> TrainingSettings:
    return TrainingSettings(
        steps=steps,
        batch_tokens=BATCH_TOKENS,
        short_length=LENGTH,
        long_length=LENGTH,
        learning_rate=learning_rate,
        seed=seed,
    )


def healed_model(recipe: str | None, seed: int) -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(bundled_model(), dtype=torch.float32)
    found = recipe_named(recipe) if recipe else None
    train(model, TokenStream(documents("calibration"), seed), settings(seed), recipe=found)
    return model


@cache
def healed(recipe: str | None, seed: int) -> float:
    """Held-out loss, nats per token."""
    return heldout_loss(healed_model(recipe, seed))


# -- card 10, BDWP


@claim(
    method="bdwp",
    says="outputs, gradients of inputs and gradients of weights are its three products",
    measures="relative difference to the formulas in float64, 64 x 96, 2:4 and 1:8, 3 seeds",
    grade=Grade.HARD,
    at_most=1e-5,
)
def test_bdwp_products() -> Iterator[float]:
    for seed in SEEDS:
        for format in ("sparse2of4", "sparse1of8"):
            matrix = matrix_of(Bdwp(format=format), normal(64, 96, seed=seed))
            matrix.before_step(at(0))
            x, g = normal(20, 96, seed=seed + 9).requires_grad_(), normal(20, 64, seed=seed + 8)
            y = matrix(x)
            y.backward(g)
            W, seen, given = matrix.weight.detach().double(), x.detach().double(), g.double()
            forward, backward = (matrix.get_buffer(f"{name}_OI") for name in ("mask", "backward"))
            expected = (seen @ (W * forward).T, given @ (W * backward), given.T @ seen)
            assert x.grad is not None
            assert matrix.weight.grad is not None
            for one, other in zip((y.detach(), x.grad, matrix.weight.grad), expected, strict=True):
                yield float((one - other).norm() / other.norm())


@claim(
    method="bdwp",
    says="at N = M it is dense training; ideally 2:4 takes 2/3 and 2:8 half of a step's products",
    measures="largest difference to nn.functional.linear and its gradients, and of the cost model",
    grade=Grade.HARD,
    at_most=1e-5,
)
def test_bdwp_is_dense_at_n_of_n() -> Iterator[float]:
    W, x = normal(64, 96).requires_grad_(), normal(20, 96, seed=1).requires_grad_()
    g = normal(20, 64, seed=2)
    full = torch.ones(64, 96, dtype=torch.bool)
    outputs = both_ways(x, W, full, full), nn.functional.linear(x, W)
    mine, dense = ((y, *torch.autograd.grad(y, (x, W), g)) for y in outputs)
    for one, other in zip(mine, dense, strict=True):
        yield float((one - other).detach().abs().max() / other.detach().abs().max())
    for n, m, expected in ((2, 4, 1.5), (2, 8, 2.0), (4, 4, 1.0)):
        yield abs(ideal_step_speedup(n, m) - expected)


@pytest.mark.slow
@claim(
    method="bdwp",
    says="sparse gradients of the inputs cost almost nothing beside sparse weights",
    measures=f"held-out loss - that with masks in the forward pass alone, 2:4, {HEALING}",
    grade=Grade.SOFT,
    at_most=0.03,
)
def test_bdwp_against_forward_masks(seed: int) -> float:
    return healed("bdwp", seed) - healed("srste@decay=0", seed)


@pytest.mark.slow
@claim(
    method="bdwp",
    says="a model trained for 2:4 loses far less by being stored as 2:4",
    measures="held-out KL of the uniform sparse2of4+int4-g64 by sparsegpt to what it was made of,"
    f" healed by bdwp / by dense steps, {HEALING}; 16k calibration tokens",
    grade=Grade.SOFT,
    at_most=0.2,
)
def test_fit_of_a_model_trained_for_its_format(seed: int, tmp_path: Path) -> float:
    found = []
    for name, recipe in (("sparse", "bdwp"), ("dense", None)):
        folder = tmp_path / f"{name}-{seed}"
        healed_model(recipe, seed).to(torch.bfloat16).save_pretrained(folder)
        load_tokenizer(bundled_model()).save_pretrained(folder)
        request = FitRequest(
            model=str(folder),
            out=tmp_path / f"fitted-{name}-{seed}",
            budget=Budget(bits=3.5),
            candidates=("sparse2of4+int4-g64:sparsegpt",),
            preset=Preset.FAST,
            library=tmp_path / "library",
            seed=seed,
            threads=1,
            calibration_tokens=16_384,
            sequence_length=512,
            eval_tokens=8_192,
            speed=False,
        )
        found.append(pipeline.fit(request).fitted.kl_divergence or 0.0)
    return found[0] / found[1]


# -- card 9, progressive gradient flow


@claim(
    method="pgf",
    says="beta of 1 is the dense weight, of 0 the masked one; the fixed mask obeys N:M and stays",
    measures="elements that differ, 64 x 96, 1:8 and 2:4, all three decays, 3 seeds",
    grade=Grade.HARD,
    at_most=0,
)
def test_pgf_begins_dense_and_ends_masked() -> Iterator[float]:
    for seed in SEEDS:
        for decay in ("linear", "exponential", "structure"):
            for format, n, m in (("sparse1of8", 1, 8), ("sparse2of4", 2, 4)):
                W = normal(64, 96, seed=seed)
                matrix = matrix_of(Pgf(format=format, decay=decay), W)
                matrix.before_step(at(5))
                yield (matrix.used_weight() != W).sum().item()
                matrix.before_step(at(80))
                mask = matrix.get_buffer("mask_OI").clone()
                yield (matrix.used_weight() != W * mask).sum().item()
                yield (mask.view(-1, m).sum(1) != n).sum().item()
                with torch.no_grad():
                    matrix.weight.copy_(normal(64, 96, seed=seed + 5))
                matrix.before_step(at(90))
                yield (matrix.get_buffer("mask_OI") != mask).sum().item()


@pytest.mark.slow
@claim(
    method="pgf",
    says="above 80% of zeros, fading weights out is no worse than straight-through masks",
    measures=f"held-out loss - that of srste, 1:8, {HEALING}",
    grade=Grade.SOFT,
    at_most=0.01,
)
def test_pgf_against_srste(seed: int) -> float:
    return healed("pgf", seed) - healed("srste@format=sparse1of8", seed)


# -- card 13, ISS-P


@claim(
    method="issp",
    says="a factor of 1 is plain training; zeros stay zero and their number is exact",
    measures="kept weights that differ from plain training, and rows of another count, tiny Llama",
    grade=Grade.HARD,
    at_most=0,
)
def test_issp_without_shrinking_is_plain() -> Iterator[float]:
    plain, _ = trained(None)
    mine, _ = trained("issp@factor=1,soft=0.96")
    for name, parameter in mine.named_parameters():
        kept = parameter != 0
        yield (parameter != plain.get_parameter(name))[kept].sum().item()
    cut, _ = trained("issp")
    for name, module in cut.named_modules():
        if isinstance(module, nn.Linear) and "layers" in name:
            rows = module.weight.count_nonzero(dim=1)
            yield (rows != round(0.3 * module.in_features)).sum().item()


@pytest.mark.slow
@claim(
    method="issp",
    says="shrinking softly is no worse than a mask fixed at the start",
    measures=f"held-out loss - that of a fixed mask, 70% of zeros, {HEALING}",
    grade=Grade.SOFT,
    at_most=0.005,
)
def test_issp_against_a_fixed_mask(seed: int) -> float:
    return healed("issp", seed) - healed("issp@soft=0", seed)


# -- card 12, MaskSparsity


@torch.enable_grad()
def gated(seed: int) -> GatedMatrix:
    """The last linear of the first FFN of a tiny Llama, after its first step."""
    model = random_model("llama", seed=seed)
    probe = tokens(seed).window(0, 64).unsqueeze(0)
    with under_recipe(model, MaskSparsity(), probe) as matrices:
        matrix = matrices[0]
        matrix.before_step(at(0))
        model(probe).logits.sum().backward()
        with torch.no_grad():
            matrix.after_backward(at(0))
    assert isinstance(matrix, GatedMatrix)
    return matrix


@claim(
    method="masksparsity",
    says="channels that stay feel no pull",
    measures="factors of kept channels that moved without the optimizer, tiny Llama, 3 seeds",
    grade=Grade.HARD,
    at_most=0,
)
@torch.no_grad()
def test_masksparsity_pulls_on_no_other_channel() -> Iterator[float]:
    for seed in SEEDS:
        matrix = gated(seed)
        for step in range(100):
            matrix.after_step(at(step), {})
        yield (matrix.gate_I != (~matrix.removed_I).float()).sum().item()


@claim(
    method="masksparsity",
    says="cutting changes outputs by no more than the remaining factors allow; folding by nothing",
    measures="|change| / sum over K of |gamma| |Wd_:j| max|a_j|, and change by folding, 3 seeds",
    grade=Grade.HARD,
    at_most=1,
)
def test_masksparsity_cut_and_folding() -> Iterator[float]:
    for seed in SEEDS:
        matrix = gated(seed)
        a = normal(50, matrix.in_features, seed=seed)
        with torch.no_grad():
            matrix.gate_I.mul_(0.2)
            sizes = matrix.weight.norm(dim=0) * matrix.gate_I.abs() * a.abs().amax(0)
            before = matrix(a)
            matrix.cut()
            cut = matrix(a)
            matrix.finish()
            folded = nn.functional.linear(a, matrix.weight, matrix.bias)
        yield float((cut - before).norm(dim=1).max() / sizes[matrix.removed_I].sum())
        yield 2.0 * (folded != cut).any()


@pytest.mark.slow
@claim(
    method="masksparsity",
    says="pulling on channels that go is better than on all, and about as good as cutting first",
    measures="held-out perplexity / that of L1 on all, and / 1.02 of that of cutting first, 30% of"
    f" the channels gone, {HEALING}",
    grade=Grade.SOFT,
    at_most=1.0,
)
def test_masksparsity_against_others(seed: int) -> Iterator[float]:
    mine = healed("masksparsity@format=narrow-p70", seed)
    for other, slack in (("only=false", 1.0), ("pull=0", 1.02)):
        loss = healed(f"masksparsity@format=narrow-p70,{other}", seed)
        yield float(torch.tensor(mine - loss).exp()) / slack


# -- card 11, Sparse-IFT


@pytest.mark.slow
@claim(
    method="sparseift",
    says="a wider, sparser FFN multiplies as often as the dense one",
    measures="weights of the FFNs under masks / of the dense FFNs - 1, hidden 256, inner 640, s of"
    " 50, 70 and 90%",
    grade=Grade.HARD,
    at_least=-0.03,
    at_most=0.03,
)
def test_sparseift_multiplies_as_often() -> Iterator[float]:
    probe = tokens().window(0, 64).unsqueeze(0)
    for share in (50, 70, 90):
        recipe = recipe_named(f"sparseift@format=sparse{share}")
        width = recipe.inner_width(640)
        model = random_model("llama", hidden_size=256, intermediate_size=width)
        with under_recipe(model, recipe, probe) as matrices, torch.no_grad():
            for matrix in matrices:
                matrix.before_step(at(0))
            products = sum(int(matrix.weight.count_nonzero()) for matrix in matrices)
        yield products / (3 * BLOCKS * 256 * 640) - 1


@cache
def trained_from_scratch(recipe: str | None, seed: int) -> float:
    """Held-out loss of a small model on the bundled model's tokens."""
    found = recipe_named(recipe) if recipe else None
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=found.inner_width(320) if found else 320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.06,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    stream = TokenStream(documents("calibration"), seed)
    train(model, stream, settings(seed, steps=500, learning_rate=2.5e-3), recipe=found)
    return heldout_loss(model)


@pytest.mark.slow
@claim(
    method="sparseift",
    says="at equal multiplications wider and sparser FFNs learn at least as much",
    measures="held-out loss - that of dense FFNs, s of 50%, 4 blocks of 128, 500 steps of 512"
    " tokens from scratch",
    grade=Grade.SOFT,
    at_most=0.0,
)
def test_sparseift_against_dense(seed: int) -> float:
    return trained_from_scratch("sparseift", seed) - trained_from_scratch(None, seed)


# -- cards 6 and 7, MatFormer and BigNAS


@claim(
    method="nested",
    says="with one child the rules are ordinary training",
    measures="weights that differ from plain training, tiny Llama",
    grade=Grade.HARD,
    at_most=0,
)
def test_one_nested_child_is_plain_training() -> Iterator[float]:
    plain, _ = trained(None, steps=3)
    mine, _ = trained("nested@children=1,sort=false", steps=3)
    for name, parameter in plain.named_parameters():
        yield (parameter != mine.get_parameter(name)).sum().item()


@claim(
    method="nested",
    says="a child is the whole model without its last channels",
    measures="largest difference of logits over their largest, tiny Llama",
    grade=Grade.HARD,
    at_most=1e-5,
)
def test_nested_children_are_slices() -> Iterator[float]:
    model, ids = random_model("llama"), tokens().window(0, 64).view(2, 32)
    with under_recipe(model, Nested(format="narrow-p25"), ids) as matrices, torch.no_grad():
        nested = [matrix for matrix in matrices if isinstance(matrix, NestedMatrix)]
        for halving in range(1, nested[0].halvings + 1):
            with at_halving(nested, halving):
                child = model(ids).logits
            whole = {m: m.weight.clone() for m in nested}
            for matrix in nested:
                matrix.weight[:, matrix.width(halving) :] = 0
            cut = model(ids).logits
            for matrix, weight in whole.items():
                matrix.weight.copy_(weight)
            yield float((child - cut).abs().max() / cut.abs().max())


def perplexity_at(recipe: str, seed: int, halvings: int) -> float:
    """Held-out perplexity of the healed model, its FFNs cut to their first channels."""
    model = healed_model(recipe, seed)
    ids = torch.cat(documents("heldout"))[None, :64]
    with under_recipe(model, Nested(sort=False), ids) as matrices:
        nested = [matrix for matrix in matrices if isinstance(matrix, NestedMatrix)]
        with at_halving(nested, halvings):
            return math.exp(heldout_loss(model))


@pytest.mark.slow
@claim(
    method="nested",
    says="nested training makes prefixes models of their own",
    measures="held-out perplexity at a quarter and at half of the channels / that of plain steps on"
    f" sorted channels, {HEALING}",
    grade=Grade.SOFT,
    at_most=0.8,
)
def test_nested_prefixes_do_their_work(seed: int) -> Iterator[float]:
    for halvings in (2, 1):
        plain = perplexity_at("nested@children=1", seed, halvings)
        yield perplexity_at("nested", seed, halvings) / plain


@pytest.mark.slow
@claim(
    method="nested",
    says="the whole model pays little for its children",
    measures=f"held-out perplexity / that of plain steps, {HEALING}",
    grade=Grade.SOFT,
    at_most=1.03,
)
def test_the_widest_child_pays_little(seed: int) -> float:
    return perplexity_at("nested", seed, 0) / perplexity_at("nested@children=1", seed, 0)


@pytest.mark.slow
@claim(
    method="nested",
    says="at equal runs, the sandwich and the widest child as teacher beat labels for all",
    measures="held-out perplexity at a quarter of the channels / that with distil=false,"
    f" {HEALING}",
    grade=Grade.SOFT,
    at_most=1.0,
)
def test_children_learn_more_from_the_widest(seed: int) -> float:
    return perplexity_at("nested", seed, 2) / perplexity_at("nested@distil=false", seed, 2)
