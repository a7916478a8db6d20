"""Writes a model folder again with some of its tensors replaced: what healing changed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockwright.assemble.folder import copy_small_files
from blockwright.checkpoint import Checkpoint, ShardWriter, write_json_atomic


def rewrite_folder(
    checkpoint: Checkpoint,
    target: Path,
    replaced: Mapping[str, Tensor],
    *,
    removed: Collection[str] = (),
    specs: Mapping[str, Mapping[str, Any]] | None = None,
    left: Collection[str] = (),
) -> int:
    """Fill the empty folder ``target`` from another; returns the bytes of its safetensors files.

    ``replaced``: tensors by name, new ones among them; ``removed``: names that go; ``specs``: site
    id -> format spec, where it is another; ``left``: small files that are not copied.
    """
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    if specs:
        packed = config["quantization_config"]
        packed["sites"] = {**packed["sites"], **{site: dict(s) for site, s in specs.items()}}
    write_json_atomic(target / "config.json", config)
    copy_small_files(checkpoint.folder, target, left)
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in (*checkpoint.names, *replaced):
        if name in replaced:
            layout[name] = (replaced[name].dtype, tuple(replaced[name].shape))
        elif name not in removed:
            layout[name] = (checkpoint.dtype(name), checkpoint.shape(name))
    with ShardWriter(target, layout) as writer:
        for name in layout:
            writer.write(name, replaced[name] if name in replaced else checkpoint.read(name))
        return writer.close()
