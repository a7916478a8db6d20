"""What reads files that a stranger may have written: each is given damaged ones and read through.

A target is made once, in a folder of its own, from something valid; ``attempt`` puts a damaged file
there and does what the tool does with it.
"""

from __future__ import annotations

import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from blockwright.anatomy import build_skeleton
from blockwright.checkpoint import Checkpoint
from blockwright.library import Library
from blockwright.library.documents import canonical, digest
from blockwright.plan import resolve_edited, solve
from blockwright.texts import load_tokenizer, read_documents
from blockwright.types import Budget, Plan, Profile, Recipe, Workload
from tests.fits import tiny_tokenizer
from tests.hostile.damage import damaged_bytes, damaged_json, spelled
from tests.library.test_damage import KEY, PROBLEM, RECORD, TENSORS
from tests.models import tiny_model
from tests.plan.problems import option, problem_of

RECIPE = """version = 1
model = "m"
preset = "fast"
candidates = ["int4-g64", "int8"]
seed = 3
threads = 2

[budget]
bits = 4.3

[digests]
model = "d"
"""


class Target(ABC):
    """One kind of file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    @abstractmethod
    def damaged(self) -> st.SearchStrategy[Any]:
        """What ``attempt`` is given."""

    @abstractmethod
    def attempt(self, damaged: Any) -> None:
        """Read it as the tool does."""


class Headers(Target):
    """A safetensors file, its header damaged as JSON or as bytes; every tensor is read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "model.safetensors"
        tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 3, dtype=torch.bfloat16)}
        save_file(tensors, self.path, metadata={"format": "pt"})
        self.whole = self.path.read_bytes()
        length = struct.unpack("<Q", self.whole[:8])[0]
        self.header = json.loads(self.whole[8 : 8 + length])
        self.data = self.whole[8 + length :]

    def damaged(self) -> st.SearchStrategy[bytes]:
        headers = damaged_json(self.header).map(self._with_header)
        return st.one_of(headers, damaged_bytes(self.whole))

    def _with_header(self, header: Any) -> bytes:
        text = spelled(header)
        return struct.pack("<Q", len(text)) + text + self.data

    def attempt(self, damaged: bytes) -> None:
        self.path.write_bytes(damaged)
        checkpoint = Checkpoint.open(self.folder)
        for name in checkpoint.names:
            checkpoint.finite_digest(name)
            checkpoint.read(name)


class Index(Target):
    """The index of a sharded checkpoint."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in "ab":
            save_file({name: torch.ones(2)}, folder / f"model-{name}.safetensors")
        names = {name: f"model-{name}.safetensors" for name in "ab"}
        self.index = {"metadata": {"total_size": 16}, "weight_map": names}

    def damaged(self) -> st.SearchStrategy[bytes]:
        return st.one_of(damaged_json(self.index).map(spelled), damaged_bytes(spelled(self.index)))

    def attempt(self, damaged: bytes) -> None:
        (self.folder / "model.safetensors.index.json").write_bytes(damaged)
        checkpoint = Checkpoint.open(self.folder)
        for name in checkpoint.names:
            checkpoint.read(name)


class Config(Target):
    """A model's configuration; its skeleton is built."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = tiny_model("llama", folder / "model")
        self.path = self.model / "config.json"
        self.config = json.loads(self.path.read_text(encoding="utf-8"))

    def damaged(self) -> st.SearchStrategy[bytes]:
        return damaged_json(self.config).map(spelled)

    def attempt(self, damaged: bytes) -> None:
        self.path.write_bytes(damaged)
        skeleton = build_skeleton(self.model)
        assert skeleton.num_blocks
        assert skeleton.sites


class Tokenizer(Target):
    """Tokenizer files; a text is tokenized."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = tiny_model("llama", folder / "model")
        tiny_tokenizer().save_pretrained(self.model)
        self.path = self.model / "tokenizer_config.json"
        self.config = json.loads(self.path.read_text(encoding="utf-8"))

    def damaged(self) -> st.SearchStrategy[bytes]:
        return damaged_json(self.config).map(spelled)

    def attempt(self, damaged: bytes) -> None:
        self.path.write_bytes(damaged)
        load_tokenizer(self.model)("some words", add_special_tokens=False)


class Texts(Target):
    """A JSONL file of documents."""

    def damaged(self) -> st.SearchStrategy[bytes]:
        lines = [{"text": "some words"}, {"text": "more", "other": [1]}]
        whole = b"\n".join(map(spelled, lines))
        joined = damaged_json(lines).map(
            lambda tree: b"\n".join(map(spelled, tree)) if isinstance(tree, list) else spelled(tree)
        )
        return st.one_of(joined, damaged_bytes(whole))

    def attempt(self, damaged: bytes) -> None:
        path = self.folder / "text.jsonl"
        path.write_bytes(damaged)
        read_documents(path)


class PlanFile(Target):
    """A plan that a user gives, checked against its problem."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        sizes = {"keep": 100, "int8": 60, "int4-g64": 40}
        offered = [
            option(site, name, size, 1 / size) for site in "abc" for name, size in sizes.items()
        ]
        self.problem = problem_of(offered)
        self.plan = json.loads(solve(self.problem, Budget(bits=5)).to_text())

    def damaged(self) -> st.SearchStrategy[bytes]:
        return st.one_of(damaged_json(self.plan).map(spelled), damaged_bytes(spelled(self.plan)))

    def attempt(self, damaged: bytes) -> None:
        path = self.folder / "plan.json"
        path.write_bytes(damaged)
        resolve_edited(Plan.read(path), self.problem)


class ProfileFile(Target):
    """A machine's profile."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        made = Profile(
            machine={"cpu": "c", "threads": 2},
            model="m",
            dtype="bfloat16",
            workload=Workload(),
            outside_ns=5,
            original_extra_ns=2,
            blocks_ns={"model.layers.0": 7},
            work_ns={"64x64 int8": 10, "64x64 keep": 20},
            untimed={"64x64 nf4": "no kernel"},
        )
        made.write(folder / "whole.json")
        self.profile = json.loads((folder / "whole.json").read_text(encoding="utf-8"))

    def damaged(self) -> st.SearchStrategy[bytes]:
        return st.one_of(
            damaged_json(self.profile).map(spelled), damaged_bytes(spelled(self.profile))
        )

    def attempt(self, damaged: bytes) -> None:
        path = self.folder / "profile.json"
        path.write_bytes(damaged)
        Profile.read(path)


class RecipeFile(Target):
    """A recipe."""

    def damaged(self) -> st.SearchStrategy[bytes]:
        return damaged_bytes(RECIPE.encode())

    def attempt(self, damaged: bytes) -> None:
        path = self.folder / "recipe.toml"
        path.write_bytes(damaged)
        Recipe.read(path).request(out=self.folder / "out", recipe=path)


class LibraryFiles(Target):
    """Any file of a library; JSON documents may carry the right digest of the wrong content."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        library = Library(folder / "library")
        library.store(RECORD, TENSORS)
        library.write_problem(PROBLEM)
        library.store_result("figure", {"value": 1.5})
        files = [path for path in library.folder.rglob("*") if path.is_file()]
        self.files = {path: path.read_bytes() for path in sorted(files) if path.stat().st_size}

    def damaged(self) -> st.SearchStrategy[tuple[Path, bytes]]:
        return st.sampled_from(sorted(self.files)).flatmap(
            lambda path: st.tuples(st.just(path), self._damaged_file(path))
        )

    def _damaged_file(self, path: Path) -> st.SearchStrategy[bytes]:
        whole = self.files[path]
        if path.suffix != ".json":
            return damaged_bytes(whole)
        return st.one_of(damaged_bytes(whole), damaged_json(json.loads(whole)).map(_signed))

    def attempt(self, damaged: tuple[Path, bytes]) -> None:
        for path, whole in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(whole)
        path, data = damaged
        path.write_bytes(data)
        library = Library(self.folder / "library")
        if library.lookup(KEY) is not None:
            library.tensors(KEY)
        for each in (library.problems, library.profiles, library.ls, library.verify):
            each()
        library.result("figure")


def _signed(content: Any) -> bytes:
    """As a document with its digest, where JSON has a spelling for it."""
    try:
        text = canonical({k: v for k, v in content.items() if k != "digest"})
        return spelled(json.loads(text) | {"digest": digest(text)})
    except (AttributeError, ValueError):
        return spelled(content)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "header": Headers,
    "index": Index,
    "config": Config,
    "tokenizer": Tokenizer,
    "text": Texts,
    "plan": PlanFile,
    "profile": ProfileFile,
    "recipe": RecipeFile,
    "library": LibraryFiles,
}
