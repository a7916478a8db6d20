"""Runs a model block by block from disk: the one executor that capture, refine and evaluate share.

Peak memory is one block (or stem and head), one batch of hidden states, and what an observer holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from blockwright.anatomy import Skeleton
from blockwright.checkpoint import materialize
from blockwright.stream.activations import ActivationFile, ActivationWriter
from blockwright.stream.calls import BlockCall, StemDone, Stop, Tape, shared_call, stand_ins
from blockwright.stream.sources import WeightSource
from blockwright.stream.tap import AllSeen, LinearTap, Observer
from blockwright.types import Site, TableRole

BATCH_TOKENS = 2048
CHUNK_LOGIT_BYTES = 32 * 2**20
Around = Callable[[int], AbstractContextManager[object]]
"""What stands around the forward of a block, by its index."""


@dataclass(frozen=True)
class Inputs:
    """What goes into the model: ``values`` [N, ...], passed under ``name``, ``batch_size`` rows at
    a time.
    """

    name: str
    values: Tensor
    batch_size: int

    @classmethod
    def of_tokens(cls, ids_NT: Tensor) -> Inputs:
        return cls("input_ids", ids_NT, max(1, BATCH_TOKENS // ids_NT.shape[1]))

    @property
    def rows(self) -> int:
        return len(self.values)

    def batches(self) -> Iterator[Tensor]:
        yield from self.values.split(self.batch_size)

    def first(self, tokens: int) -> Inputs:
        """The first rows, of about so many tokens: whole batches, at least one."""
        batch_tokens = self.batch_size * self.values[0].numel()
        batches = max(1, tokens // batch_tokens)
        return Inputs(self.name, self.values[: batches * self.batch_size], self.batch_size)


@dataclass(frozen=True)
class Stem:
    """Result of the stem: how every block is called for every batch, and a row's shape [T, H]."""

    calls: Sequence[Sequence[BlockCall]]
    """[batch][block]"""
    row_shape: tuple[int, ...]
    extra_outputs: tuple[Any, ...] | None
    """What blocks return behind their hidden states; None when they return a tensor."""


class Stream:
    """A model whose weights are read when their block's turn comes.  Computes in ``dtype`` on
    ``device``.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        source: WeightSource,
        *,
        dtype: torch.dtype,
        device: str = "cpu",
        blocks: Sequence[int] | None = None,
        around: Around | None = None,
    ) -> None:
        """``blocks``: indices of the blocks that run, in order (all by default; fewer when some are
        dropped).  ``around``: a mode that they run in (a quantized KV cache).
        """
        self.skeleton, self.source, self.dtype, self.device = skeleton, source, dtype, device
        self.blocks = tuple(range(skeleton.num_blocks) if blocks is None else blocks)
        self._around: Around = around or (lambda index: nullcontext())

    def with_blocks(self, blocks: Sequence[int]) -> Stream:
        """The same model running other blocks."""
        return Stream(
            self.skeleton,
            self.source,
            dtype=self.dtype,
            device=self.device,
            blocks=blocks,
            around=self._around,
        )

    @torch.no_grad()
    def run_stem(self, inputs: Inputs, target: Path) -> Stem:
        """Write the inputs of the first block to ``target``."""
        shell, tape = self._shell(without=TableRole.HEAD), Tape()
        calls: list[list[BlockCall]] = []
        self._put_stand_ins(shell, tape)
        with ActivationWriter(target) as writer:
            for batch in inputs.batches():
                if not calls:
                    tape.extra_outputs = self._extra_outputs(shell, tape, inputs.name, batch)
                tape.stop = Stop.LAST
                with suppress(StemDone):
                    self._forward(shell, inputs.name, batch)
                last = calls[-1] if calls else tape.calls
                calls.append([shared_call(c, p) for c, p in zip(tape.calls, last, strict=True)])
                hidden = cast(Tensor, tape.first_hidden)
                writer.append(hidden)
        return Stem(calls, tuple(hidden.shape[1:]), tape.extra_outputs)

    def _extra_outputs(self, shell: nn.Module, tape: Tape, name: str, batch: Tensor) -> Any:
        """What a block returns beside its hidden states: found by running block 0 once."""
        tape.stop = Stop.FIRST
        with suppress(StemDone):
            self._forward(shell, name, batch)
        outputs = tape.calls[0].outputs(self.block(0), cast(Tensor, tape.first_hidden))
        return None if isinstance(outputs, Tensor) else tuple(outputs[1:])

    def _forward(self, shell: nn.Module, name: str, batch: Tensor) -> Any:
        extra = {"use_cache": False} if self.skeleton.task == "causal-lm" else {}
        return shell(**{name: batch.to(self.device)}, **extra)

    def block(self, index: int) -> nn.Module:
        """A block with its weights, in the stream's dtype."""
        prefix = f"{self.skeleton.block_path}.{index}."
        tensors = self.source.load(self.skeleton.parameters_of_block(index))
        local = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        block = materialize(self.skeleton.block(index), local, self.skeleton.model)
        return self._cast(block)

    def parameters(self, index: int, block: nn.Module) -> dict[str, Tensor]:
        """Parameters of a loaded block under their names in the model."""
        prefix = f"{self.skeleton.block_path}.{index}."
        return {prefix + name: value.detach() for name, value in block.named_parameters()}

    @torch.no_grad()
    def run_block(
        self,
        index: int,
        block: nn.Module,
        stem: Stem,
        inputs: Iterator[Tensor],
        *,
        output: Path | None = None,
        observer: Observer | None = None,
        watched: Sequence[Site] = (),
        batches: int | None = None,
    ) -> None:
        """Run one block over all batches (or the first); write its outputs, show its products.

        Without ``output`` a forward ends when every watched site was seen.
        """
        sites = {site.id: site for site in watched}
        tap = None
        if observer:
            parameters = self.parameters(index, block)
            tap = LinearTap(parameters, sites, observer, stop=output is None)
        with ActivationWriter(output) if output else nullcontext() as writer:
            for calls, hidden in islice(zip(stem.calls, inputs, strict=True), batches):
                if tap:
                    tap.start_batch()
                with tap or nullcontext(), suppress(AllSeen), self._around(index):
                    result = calls[index].run(block, hidden.to(self.device))
                    if writer:
                        writer.append(result)

    def file(self, path: Path, stem: Stem) -> ActivationFile:
        """Hidden states as this stream writes them."""
        return ActivationFile(path, stem.row_shape, self.dtype)

    @torch.no_grad()
    def run_head(
        self, inputs: Inputs, stem: Stem, hidden: ActivationFile, observer: Observer | None = None
    ) -> Iterator[Tensor]:
        """Outputs of the head for the last block's outputs, in chunks, in order.

        Language models: logits [tokens, vocabulary] over all rows one after another, a chunk at a
        time (the head acts on every position by itself).  Others: last hidden states [B, T, H] by
        batch.
        """
        for _, outputs in self._head_outputs(inputs, stem, hidden, observer):
            yield outputs

    @torch.enable_grad()
    def watch_head(
        self, inputs: Inputs, stem: Stem, hidden: ActivationFile
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of a chunk of hidden states, which asks for gradients, and its head outputs."""
        yield from self._head_outputs(inputs, stem, hidden, None)

    def head(self, stem: Stem, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The head, kept in memory: last hidden states [B, T, H] and the inputs that they belong to
        -> logits [B, T, V], of others than language models last hidden states.
        """
        shell = self._shell(without=TableRole.EMBEDDING)
        tape = Tape(extra_outputs=stem.extra_outputs)
        self._put_stand_ins(shell, tape)

        @torch.no_grad()
        def run(hidden_BTH: Tensor, batch: Tensor) -> Tensor:
            tape.answer = hidden_BTH
            found = self._forward(shell, name, batch)
            causal = self.skeleton.task == "causal-lm"
            return cast(Tensor, found.logits if causal else found.last_hidden_state)

        return run

    def _head_outputs(
        self, inputs: Inputs, stem: Stem, hidden: ActivationFile, observer: Observer | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        shell = self._shell(without=TableRole.EMBEDDING)
        tape = Tape(extra_outputs=stem.extra_outputs)
        shell.requires_grad_(False)
        self._put_stand_ins(shell, tape)
        tables = {s.id: s for s in self.skeleton.tables if s.role is not TableRole.EMBEDDING}
        parameters = {n: p.detach() for n, p in shell.named_parameters()}
        tap = LinearTap(parameters, tables, observer) if observer else nullcontext()
        start = 0
        for batch in inputs.batches():
            rows = hidden.read(start, start + len(batch)).to(self.device)
            start += len(batch)
            if self.skeleton.task != "causal-lm":
                tape.answer = rows.requires_grad_(torch.is_grad_enabled())
                yield tape.answer, self._forward(shell, inputs.name, batch).last_hidden_state
                continue
            for chunk in self._head_chunks(rows):
                tape.answer = chunk.requires_grad_(torch.is_grad_enabled())
                if observer:
                    observer.start_batch()
                with tap:
                    tokens = torch.zeros(chunk.shape[:2], dtype=torch.long)
                    logits = self._forward(shell, inputs.name, tokens).logits
                yield chunk, logits.flatten(0, 1)

    def _head_chunks(self, rows_BTH: Tensor) -> Iterator[Tensor]:
        """The rows in order, whole ones or parts of one, of few enough logits."""
        vocabulary = int(self.skeleton.config.get_text_config().vocab_size)
        tokens = max(1, CHUNK_LOGIT_BYTES // (4 * vocabulary))
        length = rows_BTH.shape[1]
        for some in rows_BTH.split(max(1, tokens // length)):
            yield from some.split(tokens, dim=1) if length > tokens else (some,)

    def _shell(self, *, without: TableRole) -> nn.Module:
        """Stem and head with their weights and an empty block list.

        A table of the role ``without`` is not read: zeros that take no memory stand there.
        """
        path, skeleton = self.skeleton.block_path, self.skeleton
        unread = {site.parameter for site in skeleton.tables if site.role is without}
        names = [name for name in skeleton.stem_head_parameters if name not in unread]
        zero = torch.zeros((), dtype=self.dtype)
        tensors = self.source.load(names)
        tensors |= {name: zero.expand(skeleton.parameters[name].shape) for name in unread}
        shell = materialize(self.skeleton.model, tensors, self.skeleton.model, leave=(path,))
        shell.set_submodule(path, nn.ModuleList())
        return self._cast(shell)

    def _cast(self, module: nn.Module) -> nn.Module:
        """Parameters in the stream's dtype; computed buffers (rotary frequencies) stay."""
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(self.dtype)
        return module.to(self.device)

    def _put_stand_ins(self, shell: nn.Module, tape: Tape) -> None:
        blocks = self.skeleton.model.get_submodule(self.skeleton.block_path)
        shell.set_submodule(self.skeleton.block_path, stand_ins(cast(nn.ModuleList, blocks), tape))
