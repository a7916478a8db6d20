"""Running block by block from disk equals the model's own forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from blockwright.anatomy import build_skeleton
from blockwright.checkpoint import Checkpoint, ParameterSource
from blockwright.stream import Inputs, Stream
from tests.conftest import ModelFolder
from tests.models import KINDS, VOCAB


def open_stream(folder: Path) -> Stream:
    skeleton = build_skeleton(folder)
    source = ParameterSource(skeleton.model, Checkpoint.open(folder))
    return Stream(skeleton, source, dtype=torch.float32)


def model_inputs(task: str) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    if task == "vision":
        return Inputs("pixel_values", torch.randn(3, 3, 32, 32, generator=generator), 2)
    return Inputs("input_ids", torch.randint(5, VOCAB, (3, 24), generator=generator), 2)


def streamed(stream: Stream, inputs: Inputs, folder: Path) -> torch.Tensor:
    stem = stream.run_stem(inputs, folder / "0.bin")
    for index in stream.blocks:
        batches = stream.file(folder / f"{index}.bin", stem).batches(inputs.rows, inputs.batch_size)
        output = folder / f"{index + 1}.bin"
        stream.run_block(index, stream.block(index), stem, batches, output=output)
    final = stream.file(folder / f"{len(stream.blocks)}.bin", stem)
    return torch.cat(list(stream.run_head(inputs, stem, final)))


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_output_equals_own_forward(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = model_folder(kind)
    stream = open_stream(folder)
    task = stream.skeleton.task
    inputs = model_inputs(task)
    builder = AutoModelForCausalLM if task == "causal-lm" else AutoModel
    model = builder.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        outputs = model(**{inputs.name: inputs.values})
    expected = outputs.logits.flatten(0, 1) if task == "causal-lm" else outputs.last_hidden_state
    result = streamed(stream, inputs, tmp_path)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
