"""Checkpoints are read as safetensors reads them, and every damage is named in one line."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blockwright.checkpoint import Checkpoint, check_finite
from blockwright.checkpoint.header import DTYPES
from blockwright.errors import CheckpointError, UserError
from tests.conftest import ModelFolder

UNKNOWN_TO_SAFETENSORS = (torch.float8_e8m0fnu,)


def tensor_of(dtype: torch.dtype, *shape: int) -> Tensor:
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.arange(nbytes, dtype=torch.int64).mul(37).add(5).to(torch.uint8)
    if dtype == torch.bool:
        raw = raw % 2
    return raw.view(dtype).reshape(shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d not in UNKNOWN_TO_SAFETENSORS])
def test_every_dtype_reads_as_safetensors_reads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {
        "matrix": tensor_of(dtype, 5, 3),
        "scalar": tensor_of(dtype),
        "empty": tensor_of(dtype, 0, 4),
    }
    save_file(stored, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert set(checkpoint.names) == set(stored)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert same_bits(checkpoint.read(name), tensor)
        assert (checkpoint.shape(name), checkpoint.dtype(name)) == (tuple(tensor.shape), dtype)
        assert checkpoint.nbytes(name) == tensor.nbytes


@pytest.mark.parametrize("sharded", [False, True])
def test_all_shards_are_read(model_folder: ModelFolder, sharded: bool) -> None:
    folder = model_folder("llama", sharded=sharded)
    files = sorted(folder.glob("*.safetensors"))
    assert (len(files) > 1) == sharded
    expected = {name: tensor for file in files for name, tensor in load_file(file).items()}
    checkpoint = Checkpoint.open(folder)
    assert set(checkpoint.names) == set(expected)
    assert all(torch.equal(checkpoint.read(name), expected[name]) for name in expected)
    assert checkpoint.total_file_bytes == sum(file.stat().st_size for file in files)


def test_files_without_an_index_are_all_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "part-1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "part-2.safetensors")
    assert Checkpoint.open(tmp_path).names == ("a", "b")


def test_reading_maps_no_file(model_folder: ModelFolder) -> None:
    checkpoint = Checkpoint.open(model_folder("llama"))
    tensors = [checkpoint.read(name) for name in checkpoint.names]
    assert tensors
    assert "safetensors" not in "".join(
        line for line in Path("/proc/self/maps").read_text().splitlines() if ".so" not in line
    )


def test_digest_is_blake2b_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockwright.checkpoint.reader.CHUNK_BYTES", 7)
    tensor = tensor_of(torch.bfloat16, 6, 5)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    data = tensor.view(torch.uint8).numpy().tobytes()
    expected = hashlib.blake2b(data, digest_size=32).hexdigest()
    assert Checkpoint.open(tmp_path).digest("w") == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("position", [0, 6, 7, 19])
def test_one_nan_anywhere_is_found(
    dtype: torch.dtype, position: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockwright.checkpoint.reader.CHUNK_ELEMENTS", 7)
    tensor = torch.ones(4, 5)
    tensor.view(-1)[position] = float("nan")
    save_file({"w": tensor.to(dtype), "fine": torch.ones(3)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.check_finite("fine")
    with pytest.raises(CheckpointError, match=r"^tensor w .*NaN"):
        checkpoint.check_finite("w")
    with pytest.raises(CheckpointError, match=r"^tensor w \[4, 5\] contains NaN"):
        check_finite("w", tensor.to(dtype))


def test_infinity_is_found_and_integers_are_finite() -> None:
    check_finite("codes", torch.full((3,), 255, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="infinity"):
        check_finite("w", torch.tensor([1.0, float("-inf")]))


def write_raw(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> object:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def missing_folder(folder: Path) -> None:
    folder.rmdir()


def nothing(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def pickle_only(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"PK")


def shorter_by(count: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        save_file({"w": torch.ones(8)}, folder / "model.safetensors")
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) - count])

    return damage


def huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def longer(folder: Path) -> None:
    write_raw(folder / "model.safetensors", {"w": entry(0, 8)}, bytes(9))


def header_of(header: object, data: bytes = b"") -> Callable[[Path], None]:
    return lambda folder: write_raw(folder / "model.safetensors", header, data)


def index_of(weight_map: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        save_file({"w": torch.ones(8)}, folder / "part.safetensors")
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def unreadable_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{")


def tensor_in_two_files(folder: Path) -> None:
    save_file({"w": torch.ones(2)}, folder / "a.safetensors")
    save_file({"w": torch.ones(2)}, folder / "b.safetensors")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing folder": (missing_folder, "does not exist"),
    "no tensors": (nothing, "holds no safetensors"),
    "pickle only": (pickle_only, "pytorch_model.bin .*convert it .*save_pretrained"),
    "data cut": (shorter_by(1), "truncated: its header declares"),
    "header cut": (shorter_by(32 + 20), "truncated: its header needs"),
    "length cut": (shorter_by(200), "no safetensors file"),
    "data too long": (longer, "damaged: its header declares .* bytes, the file has"),
    "no JSON": (header_of(b"{oops"), "header is no JSON"),
    "no object": (header_of([1]), "no JSON object"),
    "huge header": (huge_header, "no safetensors file"),
    "tensor twice": (
        header_of(b'{"w":{"dtype":"U8"},"w":{"dtype":"U8"}}'),
        "names 'w' twice",
    ),
    "overlap": (header_of({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlap"),
    "wrong extent": (header_of({"a": entry(0, 12)}, bytes(12)), "takes 8 bytes.*gives it 12"),
    "malformed entry": (header_of({"a": {"dtype": "F32"}}), "entry of a is malformed"),
    "unknown dtype": (header_of({"a": entry(0, 8, "F7")}, bytes(8)), "dtype F7"),
    "missing shard": (index_of({"w": "part.safetensors", "v": "gone.safetensors"}), "names gone"),
    "missing tensor": (
        index_of({"w": "part.safetensors", "v": "part.safetensors"}),
        "places tensor v in part.safetensors, which does not hold it",
    ),
    "path in index": (index_of({"w": "../part.safetensors"}), "no file name"),
    "index without map": (index_of(None), "no 'weight_map'"),
    "unreadable index": (unreadable_index, "no readable JSON"),
    "tensor in two files": (tensor_in_two_files, "tensor w is in a.safetensors and in b"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_one_clear_line(damage: str, tmp_path: Path) -> None:
    make, message = DAMAGES[damage]
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError, match=message) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_unknown_tensor_is_an_error(model_folder: ModelFolder) -> None:
    with pytest.raises(CheckpointError, match="has no tensor nope"):
        Checkpoint.open(model_folder("llama")).read("nope")


def test_file_cut_after_opening_is_noticed(tmp_path: Path) -> None:
    save_file({"w": torch.ones(64)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match="ended while being read"):
        checkpoint.read("w")
