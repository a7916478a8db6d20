"""``blockwright kernels``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blockwright.formats import FormatLinear, native_kernel
from blockwright.machine import describe_machine
from blockwright.registry import format_named
from blockwright.types import PackedFormat
from tests.cli.conftest import CommandLine


def kernels_of(command_line: CommandLine) -> tuple[str, dict[str, str]]:
    told = json.loads(command_line("kernels", "--json").out)
    return told["native"]["state"], {each["format"]: each["kernel"] for each in told["kernels"]}


def test_kernels_without_a_native_one_are_pytorchs(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    state, kernels = kernels_of(command_line)
    assert state in {"not built", "refused"}
    assert not any("native" in kernel for kernel in kernels.values())
    assert native_kernel() is None
    assert "native_kernel" not in describe_machine()
    assert "native int4 kernel: " + state in command_line("kernels").out


@pytest.mark.usefixtures("native_kernel")
def test_kernels_with_a_native_one_name_it_and_profiles_are_kept_apart(
    command_line: CommandLine,
) -> None:
    state, kernels = kernels_of(command_line)
    assert state == "used"
    assert kernels["int4-g128"] == "native int4"
    assert kernels["int8-g128"] == "native int4 x 2"
    assert describe_machine()["native_kernel"] == native_kernel()


def test_a_build_without_compiler_is_refused_in_one_line(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "native kernel: " in command_line.refused("kernels", "--build")


@pytest.mark.usefixtures("native_kernel")
@pytest.mark.parametrize("name", ["int4-g128", "int3-g64", "int5-row", "affine4-g64", "bfp6-b32"])
def test_prepared_modules_take_it_and_give_their_tensors_back(name: str) -> None:
    format, draw = format_named(name), torch.Generator().manual_seed(0)
    assert isinstance(format, PackedFormat)
    module = format.empty((96, 256), bias=True, dtype=torch.bfloat16, device="cpu")
    assert isinstance(module, FormatLinear)
    tensors = {
        key: (0.01 + torch.rand(tensor.shape, generator=draw)).to(tensor.dtype)
        if tensor.is_floating_point()
        else torch.randint(100, tensor.shape, generator=draw).to(tensor.dtype)
        for key, tensor in module.stored_tensors().items()
    }
    module.load_stored(tensors)
    plain = module.dequantize()
    x = torch.randn(3, 256, generator=draw).bfloat16()
    expected = module.reference(x)
    module.prepare()
    assert module.kernel.startswith("native int4")
    assert module.resident_bytes == format.resident_bytes((96, 256)) + 2 * 96
    assert torch.equal(module.dequantize(), plain)
    assert (module(x) - expected).float().norm() < 1e-2 * expected.float().norm()
    for key, tensor in module.stored_tensors().items():
        assert torch.equal(tensor, tensors[key]), key
