"""Real inputs beside the original's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from blockwright.capture import PairedObserver, original_inputs
from blockwright.stream import Inputs, Stem, Stream
from blockwright.types import Site, Statistic, Statistics
from tests.conftest import ModelFolder
from tests.stream.test_equals_own_forward import model_inputs, open_stream


class Case:
    """Block 1 of a tiny model on its own inputs, or on disturbed ones."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.stream: Stream = open_stream(folder)
        self.inputs: Inputs = replace(model_inputs(self.stream.skeleton.task), batch_size=1)
        self.stem: Stem = self.stream.run_stem(self.inputs, work / "0.bin")
        self.source = self.stream.file(work / "0.bin", self.stem)
        self.sites = [s for s in self.stream.skeleton.block_sites(1) if s.parameter]

    def originals(self) -> Iterator[Mapping[str, Tensor]]:
        sites = [site for site in self.sites if site.expert is None]
        return original_inputs(self.stream, sites, self.stem, self.source, self.inputs)

    def statistics(self, noise: float) -> dict[str, Statistics]:
        observer = PairedObserver({Statistic.INPUT_GRAM}, self.originals())
        random = torch.Generator().manual_seed(0)
        batches = (
            hidden + noise * torch.randn(hidden.shape, generator=random)
            for hidden in self.source.batches(self.inputs.rows, 1)
        )
        block = self.stream.block(1)
        self.stream.run_block(1, block, self.stem, batches, observer=observer, watched=self.sites)
        return observer.statistics()

    def site(self, end: str) -> Site:
        return next(site for site in self.sites if site.id.endswith(end))


def test_behind_the_original_the_cross_gram_is_the_gram(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    case = Case(model_folder("llama"), tmp_path)
    found = case.statistics(noise=0.0)
    assert set(found) == {site.id for site in case.sites}
    for statistics in found.values():
        H_II, C_II = statistics.input_gram, statistics.cross_gram
        assert H_II is not None
        assert C_II is not None
        torch.testing.assert_close(C_II, H_II, rtol=1e-4, atol=1e-5)


def test_sites_that_share_an_input_share_its_cross_gram(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    case = Case(model_folder("llama"), tmp_path)
    found = case.statistics(noise=0.5)
    q, k, o = (found[case.site(f"{name}_proj").id] for name in ("q", "k", "o"))
    assert q.cross_gram is k.cross_gram
    assert q.input_gram is not None
    assert q.cross_gram is not None
    assert o.cross_gram is not None
    assert (q.cross_gram - q.input_gram).norm() > 0.1 * q.input_gram.norm()


def test_first_the_original_then_what_is_seen(model_folder: ModelFolder, tmp_path: Path) -> None:
    """C = E[x0 x^T], not its transpose."""
    case = Case(model_folder("llama"), tmp_path)
    site = case.site("q_proj")
    seen = [inputs[site.id] for inputs in case.originals()]
    observer = PairedObserver({Statistic.INPUT_GRAM}, case.originals())
    random = torch.Generator().manual_seed(1)
    others = [torch.randn(x.shape, generator=random) for x in seen]
    for x_TI in others:
        observer.start_batch()
        observer(site, x_TI, x_TI)
    expected = torch.cat(seen).T @ torch.cat(others) / sum(map(len, seen))
    cross_II = observer.statistics()[site.id].cross_gram
    assert cross_II is not None
    torch.testing.assert_close(cross_II, expected, rtol=1e-4, atol=1e-5)


def test_experts_have_none(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Other tokens may be routed to them."""
    case = Case(model_folder("qwen3_moe", moe_intermediate_size=64), tmp_path)
    found = case.statistics(noise=0.0)
    for site in case.sites:
        if site.id in found:
            assert (found[site.id].cross_gram is None) == (site.expert is not None)
