"""Models run with ``blockwright_<policy>``: dense equals sdpa, whatever the cache and mask."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    sliding_window_causal_mask_function,
)

from blockwright.attention import huggingface as plug
from blockwright.attention.policies.mean import Mean
from blockwright.attention.policies.moba import Moba
from blockwright.attention.spelling import spec_of
from blockwright.attention.watching import Densities, watched
from blockwright.errors import AttentionError, FormatError, UserError
from tests.attention.policies import CAUSAL
from tests.models import DECODER, HEADS_OF_16, random_model

KINDS = ["llama", "gemma3", "mistral", "qwen3", "gpt2", "gpt_neox", "opt", "bert", "vit"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    plug.register()


def gpt_oss(**overrides: Any) -> Any:
    config = transformers.GptOssConfig(
        **(
            DECODER
            | HEADS_OF_16
            | {
                "num_local_experts": 2,
                "num_experts_per_tok": 1,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            }
            | overrides
        )
    )
    torch.manual_seed(0)
    model = transformers.GptOssForCausalLM(config).eval()
    for block in model.model.layers:
        torch.nn.init.normal_(block.self_attn.sinks)
    return model


def texts(batch: int = 3, tokens: int = 41) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 128, (batch, tokens), generator=generator)


def left_padding(batch: int = 3, tokens: int = 41) -> Tensor:
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[1, :7], mask[2, :20] = 0, 0
    return mask


def output(model: Any, implementation: str, **inputs: Any) -> Tensor:
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        done = model(**inputs)
    found: Tensor = done.logits if hasattr(done, "logits") else done.last_hidden_state
    return found


def inputs_of(kind: str) -> dict[str, Tensor]:
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator())}
    return {"input_ids": texts()}


@pytest.mark.parametrize("kind", KINDS)
def test_dense_equals_sdpa(kind: str) -> None:
    model = random_model(kind)
    inputs = inputs_of(kind)
    wanted = output(model, "sdpa", **inputs)
    got = output(model, "blockwright_dense", **inputs)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral", "bert"])
def test_left_padding_is_masked(kind: str) -> None:
    model, mask = random_model(kind), left_padding()
    inputs = {"input_ids": texts(), "attention_mask": mask}
    wanted, got = (output(model, name, **inputs) for name in ("sdpa", "blockwright"))
    torch.testing.assert_close(got[mask > 0], wanted[mask > 0], atol=1e-4, rtol=1e-4)


def test_sink_logits_and_windows_equal_eager() -> None:
    model, mask = gpt_oss(), left_padding()
    inputs = {"input_ids": texts(), "attention_mask": mask}
    wanted, got = (output(model, name, **inputs) for name in ("eager", "blockwright"))
    torch.testing.assert_close(got[mask > 0], wanted[mask > 0], atol=1e-4, rtol=1e-4)


def test_capped_logits_equal_eager() -> None:
    fields = DECODER | HEADS_OF_16 | {"sliding_window": 16, "attn_logit_softcapping": 2.0}
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**fields)).eval()
    wanted, got = (output(model, name, input_ids=texts()) for name in ("eager", "blockwright"))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt_oss"])
def test_generation_with_a_cache_gives_the_same_tokens(kind: str, cache: str) -> None:
    model = gpt_oss() if kind == "gpt_oss" else random_model(kind)
    reference = "eager" if kind == "gpt_oss" else "sdpa"
    found = []
    for implementation in (reference, "blockwright_dense"):
        model.set_attn_implementation(implementation)
        found.append(
            model.generate(
                input_ids=texts(),
                attention_mask=left_padding(),
                max_new_tokens=12,
                do_sample=False,
                cache_implementation=cache,
                output_logits=True,
                return_dict_in_generate=True,
                disable_compile=True,
            )
        )
    assert torch.equal(found[0].sequences, found[1].sequences)
    for wanted, got in zip(found[0].logits, found[1].logits, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", CAUSAL)
def test_every_causal_policy_generates(name: str) -> None:
    model = random_model("llama")
    model.set_attn_implementation(f"blockwright_{name}")
    got = model.generate(
        input_ids=texts(), attention_mask=left_padding(), max_new_tokens=3, do_sample=False
    )
    assert got.shape == (3, 44)


def test_blocks_may_have_their_own_policies() -> None:
    model = random_model("llama")
    dense = output(model, "blockwright_dense", input_ids=texts())
    plug.use_policies(model, {1: Mean(query_block=8, key_block=8, keep=2)})
    with torch.no_grad():
        mixed = model(input_ids=texts()).logits
    assert not torch.allclose(mixed, dense, atol=1e-3)
    plug.use_policies(model, {0: Moba(block=64, keep=1), 2: "dense"})
    with torch.no_grad():
        covered = model(input_ids=texts()).logits
    torch.testing.assert_close(covered, dense, atol=1e-4, rtol=1e-4)


def test_the_config_says_which_policy_a_block_has() -> None:
    """So that a copy of a block, or a model read back with its config, attends alike."""
    model = random_model("llama")
    plug.use_policies(model, {1: "mean@query_block=8,key_block=8,keep=2"})
    with torch.no_grad():
        wanted = model(input_ids=texts()).logits
    assert vars(model.config)[plug.POLICIES] == {"1": "mean@query_block=8,key_block=8,keep=2"}
    copied = type(model)(copy.deepcopy(model.config)).eval()
    copied.load_state_dict(model.state_dict())
    copied.set_attn_implementation("blockwright")
    with torch.no_grad():
        assert torch.equal(copied(input_ids=texts()).logits, wanted)


def test_one_policy_may_stand_in_all_blocks_and_leave_again() -> None:
    model = random_model("llama")
    own = output(model, "sdpa", input_ids=texts())
    seen = Densities()
    plug.use_attention(model, "window@window=8,sink=2,query_block=8,key_block=8")
    with torch.no_grad(), watched(seen):
        windowed = model(input_ids=texts()).logits
    assert not torch.allclose(windowed, own, atol=1e-3)
    assert set(seen.found) == {0, 1, 2}
    assert seen.mean is not None
    assert 0 < seen.mean < 1
    plug.use_attention(model, "keep")
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=texts()).logits, own)


def test_a_folder_says_how_its_blocks_attend() -> None:
    model = random_model("llama")
    spec = spec_of("moba@keep=1,block=16")
    model.config.quantization_config = {"quant_method": "blockwright", "attention": {"2": spec}}
    plug.use_attention(model, None)
    assert plug.attends_by_policy(model)
    assert vars(model.config)[plug.POLICIES] == {"2": "moba@block=16,keep=1"}
    spec["version"] = 99
    with pytest.raises(FormatError, match="upgrade"):
        plug.recorded_policies(model.config)


@pytest.mark.parametrize(
    ("attention", "message"),
    [("xattentoin", "did you mean 'xattention'"), ("mean@kep=2", "did you mean 'keep'")],
)
def test_an_unknown_policy_is_refused_with_the_nearest(attention: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plug.use_attention(random_model("llama"), attention)


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttentionError, match="no block 9"):
        plug.use_policies(random_model("llama"), {9: "dense"})


def test_a_mask_of_any_other_shape_still_masks() -> None:
    """Packed documents: transformers hands over a function that no plain rule covers."""
    model = random_model("llama")
    positions = torch.cat([torch.arange(20), torch.arange(21)]).expand(3, -1)
    inputs = {"input_ids": texts(), "position_ids": positions, "use_cache": False}
    wanted, got = (output(model, name, **inputs) for name in ("sdpa", "blockwright"))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    alone = output(model, "blockwright", input_ids=texts()[:, 20:], use_cache=False)
    torch.testing.assert_close(got[:, 20:], alone, atol=1e-4, rtol=1e-4)


def test_plain_rules_are_recognised_and_others_are_not() -> None:
    assert plug._plain_rule(causal_mask_function) == (True, None)
    assert plug._plain_rule(sliding_window_causal_mask_function(7)) == (True, 7)
    assert plug._plain_rule(and_masks(causal_mask_function, causal_mask_function)) is None


def test_masks_cost_no_square() -> None:
    mask = plug.position_mask(2, 1000, 1000)
    assert mask.numel() == 2 * 2002


def test_what_cannot_be_done_is_refused() -> None:
    module, q = torch.nn.Identity(), torch.zeros(1, 1, 4, 8)
    with pytest.raises(AttentionError, match="dropout"):
        plug.attention_forward(module, q, q, q, None, policy="dense", dropout=0.1)
    with pytest.raises(AttentionError, match="bias"):
        plug.attention_forward(module, q, q, q, torch.rand(1, 1, 4, 4), policy="dense")
    mask = plug.position_mask(1, 4, 5)
    with pytest.raises(AttentionError, match="cuts masks"):
        plug.attention_forward(module, q, q, q, mask, policy="dense")
