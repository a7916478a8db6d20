"""Writes a plan as a model folder: tensor by tensor, under a temporary name until it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from blockwright.anatomy import (
    Skeleton,
    Slice,
    pruned_config,
    sentinel_of,
    shapes_within,
    slices_within,
)
from blockwright.anatomy.configuration import CONFIG_FILE
from blockwright.checkpoint import (
    Checkpoint,
    ShardWriter,
    partial_path,
    sync_folder,
    write_json_atomic,
)
from blockwright.errors import OutputError
from blockwright.formats import format_from_spec
from blockwright.registry import format_named
from blockwright.types import DROP, NarrowedPart, PackedFormat, Part, Site, absent_to_json

Specs = Mapping[str, Mapping[str, Any]]
"""Site id -> format spec, for every packed site."""
StoredTensors = Callable[[Site], Mapping[str, Tensor]]
"""The packed tensors of a site, by their name in the format."""


class Parameters(Protocol):
    """Gives model parameters by name."""

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of these parameters, as they are stored."""


WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
PROBE = ".blockwright-probe"
"""Folder that is made and removed to see whether folders can be."""
NOT_COPIED = {CONFIG_FILE, "README.md", "model.safetensors.index.json", "training_args.bin"}


@dataclass(frozen=True)
class Layout:
    """What a fitted folder will hold, known before anything is written."""

    skeleton: Skeleton
    specs: Specs
    kept_blocks: Sequence[int]
    """Blocks that stay, in order."""
    unused: Mapping[str, tuple[torch.dtype, tuple[int, ...]]] = field(default_factory=dict)
    """Checkpoint tensors that no parameter uses (another task's head): copied as they are."""
    caches: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Block -> spec of its KV cache."""
    policies: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Block -> spec of its attention policy."""
    dropped: Sequence[Part] = ()
    """Parts that are left out of blocks that stay."""
    narrowed: Sequence[NarrowedPart] = ()
    """Parts with fewer channels or heads."""

    @cached_property
    def packed_sites(self) -> dict[str, list[Site]]:
        """Parameter -> its packed sites."""
        found: dict[str, list[Site]] = defaultdict(list)
        for site in self.skeleton.sites:
            if site.id in self.specs:
                shape = self.shapes.get(site.id, site.shape)
                found[site.parameter].append(replace(site, shape=shape))
        return dict(found)

    @cached_property
    def absent(self) -> frozenset[str]:
        """Parameters of dropped parts."""
        return frozenset(name for part in self.dropped for name in part.parameters)

    @cached_property
    def sentinels(self) -> frozenset[str]:
        """Those of them that leave an empty tensor of their name, one in every module left out."""
        model = self.skeleton.model
        paths = [module.path for part in self.dropped for module in part.absent]
        return frozenset(f"{path}.{sentinel_of(model.get_submodule(path))}" for path in paths)

    @cached_property
    def slices(self) -> dict[str, Slice]:
        """Parameters of which a part stays."""
        return {n: slice for item in self.narrowed for n, slice in slices_within(item).items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes of the linears of narrower parts."""
        return {
            site: shape for item in self.narrowed for site, shape in shapes_within(item).items()
        }

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name -> dtype and shape of everything in the files, in the order of writing."""
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for name in self.parameters():
            for stored, dtype, shape in self._stored(name):
                layout[self.renamed(stored)] = (dtype, shape)
        return layout | dict(self.unused)

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(_nbytes(dtype, shape) for dtype, shape in self.tensors().values())

    def parameters(self) -> Iterator[str]:
        """Model parameters that the folder holds: tied ones once, those of dropped blocks and parts
        not at all, but for the sentinels.
        """
        prefix = self.skeleton.block_path + "."
        kept = set(self.kept_blocks)
        tied = set(self.skeleton.model.all_tied_weights_keys)
        for name in self.skeleton.parameters:
            inside = name.startswith(prefix)
            if inside and int(name[len(prefix) :].partition(".")[0]) not in kept:
                continue
            if name not in tied and (name not in self.absent or name in self.sentinels):
                yield name

    def renamed(self, name: str) -> str:
        """The name with its block counted among the kept ones."""
        prefix = self.skeleton.block_path + "."
        if not name.startswith(prefix):
            return name
        index, dot, rest = name[len(prefix) :].partition(".")
        return f"{prefix}{list(self.kept_blocks).index(int(index))}{dot}{rest}"

    def _stored(self, name: str) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
        if name in self.sentinels:
            yield name, torch.uint8, (0,)
            return
        sites = self.packed_sites.get(name, [])
        if not any(site.stored_prefix + "weight" == name for site in sites):
            tensor = self.skeleton.parameters[name]
            shape = self.slices[name].shape(tensor.shape) if name in self.slices else tensor.shape
            # A replaced parameter leaves an empty tensor of its name: plain loading raises.
            yield (name, torch.uint8, (0,)) if sites else (name, tensor.dtype, tuple(shape))
        for site in sites:
            for part, tensor in empty_tensors(self.specs[site.id], site).items():
                yield site.stored_prefix + part, tensor.dtype, tuple(tensor.shape)


def _nbytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()


def empty_tensors(spec: Mapping[str, Any], site: Site) -> dict[str, Tensor]:
    """The stored tensors of a packed site, on ``meta``."""
    format = format_from_spec(spec)
    if not isinstance(format, PackedFormat):
        raise TypeError(f"{site.id}: {format.name} is not packed")
    return format.empty(site.shape, bias=False, dtype=torch.bfloat16).stored_tensors()


def assemble(
    layout: Layout,
    source: Parameters,
    checkpoint: Checkpoint,
    stored_tensors: StoredTensors,
    out: Path,
    extra_files: Mapping[str, str] | None = None,
    advance: Callable[[int], object] = lambda written: None,
) -> int:
    """Write the folder ``out``, whole or not at all; returns the bytes of its safetensors files.

    The arguments are those of ``write_model``; errors are those of ``unfinished_folder``.
    """
    with unfinished_folder(out) as folder:
        return write_model(layout, source, checkpoint, stored_tensors, folder, extra_files, advance)


@contextmanager
def unfinished_folder(out: Path) -> Iterator[Path]:
    """An empty folder ``OUT.partial``, renamed to ``out`` when the body ends, removed when it
    fails.

    After a kill ``out`` is not there and what the killed run left is replaced by the next one.
    Raises ``OutputError`` when ``out`` is not empty or cannot be written.
    """
    check_free(out)
    partial = partial_path(out)
    _remove_unfinished(partial)
    try:
        with _one_line_errors(out):
            partial.mkdir(parents=True)
        yield partial
        with _one_line_errors(out):
            if out.exists():
                out.rmdir()
            os.replace(partial, out)
            sync_folder(out.parent)
    except BaseException:
        with suppress(OSError):
            _remove_marked(partial)
        raise


def _remove_unfinished(partial: Path) -> None:
    """Remove what a killed run left, and nothing else."""
    if not (partial.is_dir() and any(map(_is_mark, partial.iterdir()))):
        check_free(partial)
    with _one_line_errors(partial):
        _remove_marked(partial)


def _is_mark(path: Path) -> bool:
    """Whether it is ``config.json``, whole or half-written: a folder's first file."""
    return path.name.startswith(CONFIG_FILE)


def _remove_marked(partial: Path) -> None:
    """Remove a folder with its mark last: killed here, the next run still knows it."""
    if partial.is_dir():
        for path in sorted(partial.iterdir(), key=_is_mark):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        partial.rmdir()


@contextmanager
def _one_line_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {out}: {error.strerror}; free space or permissions there, or give"
            " another --out; the same command resumes"
        ) from None


def write_model(
    layout: Layout,
    source: Parameters,
    checkpoint: Checkpoint,
    stored_tensors: StoredTensors,
    folder: Path,
    extra_files: Mapping[str, str] | None = None,
    advance: Callable[[int], object] = lambda written: None,
) -> int:
    """Fill an empty folder; returns the bytes of its safetensors files.

    Tokenizer and other small files come from the checkpoint's folder; ``extra_files``: name, text;
    ``advance`` is told the bytes of every tensor written.  Raises ``OutputError``.
    """
    with _one_line_errors(folder):
        write_json_atomic(folder / CONFIG_FILE, folder_config(layout, checkpoint.folder))
        copy_small_files(checkpoint.folder, folder)
        for name, text in (extra_files or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        with ShardWriter(folder, layout.tensors()) as writer:
            for name, tensor in _tensors(layout, source, checkpoint, stored_tensors):
                writer.write(name, tensor)
                advance(tensor.nbytes)
            return writer.close()


def check_free(out: Path) -> None:
    """Raise ``OutputError`` unless ``out`` is absent or an empty folder, in a place where folders
    can be made.
    """
    empty = out.is_dir() and not any(out.iterdir())
    if (out.exists() or out.is_symlink()) and not empty:
        found = "is not empty" if out.is_dir() else "is a file, not a folder"
        raise OutputError(f"output {out} {found}; give another --out or remove it")
    missing = [place for place in out.parents if not place.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _probe(out.parent / PROBE)
    except OSError as error:
        raise OutputError(
            f"output {out} cannot be made: {error.strerror}; give another --out"
        ) from None
    finally:
        for place in missing:
            with suppress(OSError):
                place.rmdir()


def _probe(place: Path) -> None:
    """Make a folder and remove it again, by a name that the next run removes after a kill."""
    with suppress(FileExistsError):
        place.mkdir()
    with suppress(FileNotFoundError):
        place.rmdir()


def folder_config(layout: Layout, original: Path) -> dict[str, Any]:
    """``config.json`` of the fitted folder."""
    config: dict[str, Any] = json.loads((original / CONFIG_FILE).read_text(encoding="utf-8"))
    if len(layout.kept_blocks) < layout.skeleton.num_blocks:
        config |= pruned_config(layout.skeleton.config, list(layout.kept_blocks)).to_diff_dict()
    config.pop("quantization_config", None)
    parts = {**_dropped_parts(layout), **_narrowed_parts(layout)}
    if layout.specs or layout.caches or layout.policies or parts:
        sites = {layout.renamed(site): dict(spec) for site, spec in layout.specs.items()}
        kept = list(layout.kept_blocks)
        caches, policies = (
            {str(kept.index(b)): dict(spec) for b, spec in found.items() if b in kept}
            for found in (layout.caches, layout.policies)
        )
        config["quantization_config"] = {
            "quant_method": "blockwright",
            "version": 3 if policies else 2 if parts else 1,
            "sites": sites,
            **({"cache": caches} if caches else {}),
            **({"attention": policies} if policies else {}),
            **({"parts": parts} if parts else {}),
        }
    return config


def _narrowed_parts(layout: Layout) -> dict[str, Any]:
    """Part -> its format, and the shapes of its linears."""
    found, kept = {}, list(layout.kept_blocks)
    for item in layout.narrowed:
        part, shapes = item.part, shapes_within(item)
        found[layout.renamed(part.site.id)] = {
            **item.spec,
            "role": part.role.value,
            "block": kept.index(part.site.block or 0),
            "shapes": {layout.renamed(site): list(shape) for site, shape in shapes.items()},
            **_placed(layout, item),
        }
    return found


def _placed(layout: Layout, item: NarrowedPart) -> dict[str, Any]:
    """Where the dimensions of heads stand that stay, by linear."""
    heads = item.part.heads
    if heads is None or not item.dims:
        return {}
    places = {
        layout.renamed(site): {
            "size": heads.size,
            "dims": list(dims),
            "inputs": site == heads.output,
        }
        for site, dims in item.dims.items()
    }
    return {"placed": places}


def _dropped_parts(layout: Layout) -> dict[str, Any]:
    """Part -> its format, and what stands for its modules."""
    found, kept = {}, list(layout.kept_blocks)
    for part in layout.dropped:
        modules = tuple(replace(m, path=layout.renamed(m.path)) for m in part.absent)
        found[layout.renamed(part.site.id)] = {
            **format_named(str(DROP)).spec(),
            "role": part.role.value,
            "block": kept.index(part.site.block or 0),
            "modules": absent_to_json(modules),
        }
    return found


def _tensors(
    layout: Layout, source: Parameters, checkpoint: Checkpoint, stored_tensors: StoredTensors
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything that the folder holds, in the order of the layout."""
    for name in layout.parameters():
        sites = layout.packed_sites.get(name, [])
        if name in layout.sentinels:
            yield layout.renamed(name), torch.empty(0, dtype=torch.uint8)
            continue
        if not sites:
            tensor = source.load([name])[name]
            slice = layout.slices.get(name)
            yield layout.renamed(name), tensor if slice is None else slice.of(tensor)
            continue
        if not any(site.stored_prefix + "weight" == name for site in sites):
            yield layout.renamed(name), torch.empty(0, dtype=torch.uint8)
        for site in sites:
            tensors = stored_tensors(site)
            for part in empty_tensors(layout.specs[site.id], site):
                yield layout.renamed(site.stored_prefix + part), tensors[part]
    for name in layout.unused:
        yield name, checkpoint.read(name)


def copy_small_files(original: Path, target: Path, left: Collection[str] = ()) -> None:
    """Tokenizer and the like; ``left``: names of more files that are not copied."""
    for path in sorted(original.iterdir()):
        kept = path.name not in NOT_COPIED and path.name not in left
        if path.is_file() and kept and path.suffix not in WEIGHT_FILES:
            shutil.copyfile(path, target / path.name)
