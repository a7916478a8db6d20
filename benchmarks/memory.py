"""Peak memory of ``fit --preset fast`` at two depths: it must not grow with the depth, and stay
within one block in fp32, the Grams held for it, three times the largest Gram, stem and head, one
chunk of logits and 1.5 GB.
"""

from __future__ import annotations

import json
import random
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.models import random_llama
from blockwright.anatomy import Skeleton, build_skeleton
from blockwright.stream.executor import CHUNK_LOGIT_BYTES
from blockwright.types import SiteKind

GROWTH_BOUND = 1.05
"""Largest peak at twice the depth, against the peak at the depth."""
BESIDE_BYTES = 1_500_000_000
"""Interpreter, libraries, working memory."""


def run(work: Path, blocks: int, tokens: int) -> dict[str, Any]:
    """Fit the random model and one of twice its depth to 4.3 bits."""
    peaks = {depth: fit(work, depth, tokens) for depth in (blocks, 2 * blocks)}
    growth = peaks[2 * blocks]["peak_rss_bytes"] / peaks[blocks]["peak_rss_bytes"]
    return {"depths": peaks, "growth": growth, "growth_bound": GROWTH_BOUND}


def fit(work: Path, blocks: int, tokens: int) -> dict[str, Any]:
    """One fit in a process of its own."""
    model = random_llama(work / f"llama-{blocks}", blocks)
    character_tokenizer().save_pretrained(model)
    text = work / "text.txt"
    text.write_text(random_words(4 * tokens), encoding="utf-8")
    out = work / f"fitted-{blocks}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "blockwright", "fit", str(model), "--bits", "4.3"]
    command += ["--preset", "fast", "--out", str(out), "--library", str(work / "library")]
    command += ["--calibration", str(text), "--calibration-tokens", str(tokens)]
    command += ["--eval-tokens", "2048", "--no-speed", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    taken = {name: result[name] for name in ("peak_rss_bytes", "seconds", "bits_per_weight")}
    return taken | {"promised_bytes": promised_bytes(build_skeleton(model))}


def promised_bytes(skeleton: Skeleton) -> int:
    """The largest peak that a fit may have, whatever the depth."""
    sites = [site for site in skeleton.block_sites(0) if site.kind is SiteKind.LINEAR]
    inputs = {
        (site.parameter.rpartition(".")[0].rpartition(".")[0], site.shape[1]) for site in sites
    }
    grams = [4 * features**2 for _, features in inputs]
    block = sum(4 * skeleton.parameters[name].numel() for name in skeleton.parameters_of_block(0))
    outside = skeleton.stem_bytes + skeleton.head_bytes
    return block + sum(grams) + 3 * max(grams) + outside + CHUNK_LOGIT_BYTES + BESIDE_BYTES


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable character: random weights need no better."""
    vocabulary = {name: index for index, name in enumerate(["<unk>", "<s>", *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def random_words(characters: int) -> str:
    """Lines of random words."""
    draw = random.Random(0)
    words = ("".join(draw.choices(string.ascii_lowercase, k=6)) for _ in range(characters // 7))
    return "\n".join(" ".join([word] * 2) for word in words)
