"""A fitted model that can be trained: the model as transformers loads it, its packed modules in
their portable state, with the values of what is trained put in their places before every step.

Trained by name, as the folder stores it (``model.layers.0.mlp.up_proj.scale``), or, what belongs
to an adapter, ``adapter/<site>/<name>``.

Memory:  blocks keep their inputs alone and run again in the backward (``recompute``): the
         activations of one block, and its weights while they are dequantized, are held at a time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.checkpoint import checkpoint

from blockwright.formats._linear import FormatLinear
from blockwright.heal.adapter import Attachment, Counts, Host
from blockwright.tuning import Trained, TrainedTensor
from blockwright.types import Site, SiteKind

Place = tuple[nn.Module, str]
ADAPTER_PREFIX = "adapter/"


class Student:
    """A loaded model, its hosts, and what is trained of it."""

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], dtypes: Mapping[str, torch.dtype]
    ) -> None:
        """``model``: loaded in fp32; ``sites``: of the folder's model; ``dtypes``: of its stored
        tensors, by name.
        """
        self.model, self.dtypes = model, dict(dtypes)
        model.requires_grad_(False)
        self.frozen_before = sum(p.numel() for p in model.parameters())
        for module in model.modules():
            if isinstance(module, FormatLinear):
                module.restore()
        self.hosts = tuple(found for site in sites if (found := self._host(site)) is not None)
        self.trained: dict[str, Trained] = {}
        self.attachments: list[Attachment] = []
        self._places: dict[str, list[Place]] = {}
        self._owners = _owners(model)

    def _host(self, site: Site) -> Host | None:
        """The host at a site; None for a block, and for dense experts and tables."""
        for path in (site.stored_prefix[:-1], site.module):
            module = _submodule(self.model, path)
            if isinstance(module, FormatLinear):
                return Host(site, path, module)
        linear = site.kind is SiteKind.LINEAR and site.expert is None
        return Host(site, site.module, module) if linear and module is not None else None

    # -- what is trained

    def attach(self, attachments: Iterable[Attachment]) -> None:
        """Train what adapters brought."""
        for attachment in attachments:
            self.attachments.append(attachment)
            for name, item in attachment.trained.items():
                full = f"{ADAPTER_PREFIX}{attachment.host.path}/{name}"
                self.trained[full] = item
                if name in attachment.placed:
                    self._places[full] = [attachment.placed[name]]

    def train_parameters(self, names: Iterable[str], pace: float = 1.0) -> None:
        """Train parameters of the model in place: norms, biases, dense tables and weights."""
        for name in names:
            places = self._owners[name]
            owner, leaf = places[0]
            item = TrainedTensor(getattr(owner, leaf), dtype=self.dtypes[name])
            item.pace = pace
            self.trained[name] = item
            self._places[name] = places
            for module, attribute in places:
                del module._parameters[attribute]
                setattr(module, attribute, item.start)

    def stored_parameters(self) -> dict[str, Tensor]:
        """Parameters that the folder stores under their own names, tied ones once."""
        found: dict[str, Tensor] = {}
        for name, places in self._owners.items():
            module, leaf = places[0]
            if name in self.dtypes and leaf in module._parameters:
                found[name] = module._parameters[leaf]  # type: ignore[assignment]
        return found

    @property
    def counts(self) -> Counts:
        trainable = sum(item.offset.numel() for item in self.trained.values())
        return Counts(trainable, self.frozen_before)

    def blocks_of_trained(self, path: str) -> dict[str, str]:
        """Name of what is trained -> the model's block it is in, empty outside of them."""
        found = {}
        for name in self.trained:
            inside, below, rest = name.removeprefix(ADAPTER_PREFIX).partition(f"{path}.")
            found[name] = rest.partition(".")[0] if below and not inside else ""
        return found

    def place(self) -> None:
        """Put the current values in their places, with gradients to what is trained."""
        for name, places in self._places.items():
            value = self.trained[name].value()
            for module, attribute in places:
                setattr(module, attribute, value)

    # -- products

    def blocks(self, path: str) -> list[nn.Module]:
        """The model's blocks."""
        return list(self.model.get_submodule(path).children())

    def recompute(self, blocks: Iterable[nn.Module]) -> None:
        """Keep the inputs of these blocks only, and run them again in the backward."""
        for block in blocks:
            again = partial(checkpoint, block.forward, use_reentrant=False)
            block.forward = again

    @torch.no_grad()
    def angles(self, path: str, inputs: Mapping[str, Tensor]) -> list[float]:
        """Mean angle, over pi, between what goes into every block and what comes out."""
        found: list[float] = []

        def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output if isinstance(output, Tensor) else output[0]
            cosine = cosine_similarity(before.float(), after.float(), dim=-1)
            found.append((cosine.clamp(-1, 1).arccos() / math.pi).mean().item())

        blocks = self.blocks(path)
        watched = [block.register_forward_hook(see, with_kwargs=True) for block in blocks]
        try:
            self.outputs(inputs)
        finally:
            for handle in watched:
                handle.remove()
        return found

    def outputs(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, T, V], or last hidden states [B, T, H] without a language head, in fp32."""
        causal = {"use_cache": False} if _has_head(self.model) else {}
        found: Any = self.model(**inputs, **causal)
        chosen = found.logits if "logits" in found else found.last_hidden_state
        return chosen.float()  # type: ignore[no-any-return]


def _has_head(model: nn.Module) -> bool:
    get = getattr(model, "get_output_embeddings", None)
    return get is not None and get() is not None


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _owners(model: nn.Module) -> dict[str, list[Place]]:
    """Parameter -> the places that hold it, under its first name."""
    places: dict[int, list[Place]] = defaultdict(list)
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(id(parameter), f"{path}.{leaf}" if path else leaf)
                places[id(parameter)].append((module, leaf))
    return {names[key]: found for key, found in places.items()}
