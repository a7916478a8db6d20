"""What is written is what safetensors and transformers read, byte for byte the same each time."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from blockwright.checkpoint import Checkpoint, ShardWriter, write_bytes_atomic, write_json_atomic
from blockwright.checkpoint.header import read_header
from blockwright.errors import OutputError
from tests.conftest import ModelFolder

TENSORS = {
    "codes": torch.arange(13, dtype=torch.uint8),
    "scale": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "mask": torch.tensor([True, False, True]),
    "half": torch.linspace(0, 1, 7, dtype=torch.bfloat16),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.empty(0, 4),
}


def layout_of(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write(folder: Path, tensors: dict[str, Tensor], **options: Any) -> int:
    writer = ShardWriter(folder, layout_of(tensors), **options)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    return writer.close()


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    size = write(tmp_path, TENSORS, metadata={"plan": "7"})
    path = tmp_path / "model.safetensors"
    assert size == path.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "plan": "7"}


def test_every_tensor_is_aligned_to_its_elements(tmp_path: Path) -> None:
    write(tmp_path, TENSORS)
    entries = read_header(tmp_path / "model.safetensors")
    assert all(entry.offset % entry.dtype.itemsize == 0 for entry in entries.values())


def test_bytes_do_not_depend_on_the_run_or_the_order_of_metadata(tmp_path: Path) -> None:
    metadata = {"b": "2", "a": "1", "z": "0"}
    write(tmp_path / "one", TENSORS, metadata=metadata)
    write(tmp_path / "two", TENSORS, metadata=dict(reversed(metadata.items())))
    first, second = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_tensors_need_not_be_contiguous(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4).T
    write(tmp_path, {"w": tensor})
    assert torch.equal(Checkpoint.open(tmp_path).read("w"), tensor)


def test_transformers_loads_the_shards(model_folder: ModelFolder, tmp_path: Path) -> None:
    original = model_folder("llama")
    checkpoint = Checkpoint.open(original)
    tensors = {name: checkpoint.read(name) for name in checkpoint.names}
    size = write(tmp_path, tensors, max_shard_bytes=50_000)
    (tmp_path / "config.json").write_bytes((original / "config.json").read_bytes())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert size == sum(file.stat().st_size for file in files)
    assert all(file.stat().st_size < 50_000 + 2_000 for file in files)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    expected = AutoModelForCausalLM.from_pretrained(original).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_index_names_every_tensor_and_the_total(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, max_shard_bytes=16)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in TENSORS.values())}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], TENSORS[name])
    assert index["weight_map"].keys() == TENSORS.keys()


def test_nothing_to_write_is_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path, {})
    assert load_file(tmp_path / "model.safetensors") == {}


def test_order_shape_and_completeness_are_enforced(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, layout_of(TENSORS))
    with pytest.raises(ValueError, match="scale written out of order: codes is due"):
        writer.write("scale", TENSORS["scale"])
    with pytest.raises(ValueError, match=r"codes is torch\.float32"):
        writer.write("codes", torch.zeros(13))
    writer.write("codes", TENSORS["codes"])
    with pytest.raises(ValueError, match="out of order: scale is due"):
        writer.write("codes", TENSORS["codes"])
    with pytest.raises(ValueError, match="scale was announced and not written"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_bears_its_final_name_before_all_is_written(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, layout_of(TENSORS), max_shard_bytes=16)
    for name, tensor in TENSORS.items():
        writer.write(name, tensor)
        assert all(path.suffix == ".partial" for path in tmp_path.iterdir())
    writer.close()
    assert not list(tmp_path.glob("*.partial"))


def test_an_error_between_two_tensors_leaves_nothing(tmp_path: Path) -> None:
    def stop_half_way() -> None:
        with ShardWriter(tmp_path, layout_of(TENSORS)) as writer:
            writer.write("codes", TENSORS["codes"])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["pwrite", "fsync", "open"])
@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "no space left"), (errno.EACCES, "no permission"), (errno.EIO, "error")],
)
def test_every_refusal_of_the_disk_is_one_line_and_leaves_nothing(
    call: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OutputError, match=message) as caught:
        write(tmp_path, TENSORS)
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folders_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / "taken", TENSORS)


def test_a_failed_atomic_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    write_json_atomic(path, {"b": 1, "a": 2})
    before = path.read_bytes()
    assert json.loads(before) == {"b": 1, "a": 2}
    assert before.index(b'"b"') < before.index(b'"a"')

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match="no space left"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_atomic_write_into_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes_atomic(tmp_path / "gone" / "file", b"x")
