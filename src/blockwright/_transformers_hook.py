"""Make transformers know Blockwright's folders, whichever of the two is imported first.

Importing transformers' quantizers takes seconds and loads torch, so ``import blockwright`` must not
do it: a finder waits until ``transformers.quantizers.auto`` has run.  Even then ours cannot be
imported, because transformers, or a module of ours that imports it, may be half imported.  So two
stand-ins are registered; when transformers first uses one, to load a fitted folder, they make way
for ``blockwright.loading``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

REGISTRY_MODULE = "transformers.quantizers.auto"
"""The module that maps the names of quantization methods to classes."""
QUANT_METHOD = "blockwright"


def install() -> None:
    """Register stand-ins now, or as soon as transformers can take them."""
    if any(isinstance(finder, _RegistryFinder) for finder in sys.meta_path):
        return
    if REGISTRY_MODULE in sys.modules:
        _register_stand_ins(sys.modules[REGISTRY_MODULE])
    else:
        sys.meta_path.insert(0, _RegistryFinder())


def _register_stand_ins(registry: Any) -> None:
    """Put classes into the registry that forward to the real ones."""
    mappings = (registry.AUTO_QUANTIZATION_CONFIG_MAPPING, registry.AUTO_QUANTIZER_MAPPING)
    if any(QUANT_METHOD in mapping for mapping in mappings):
        return

    def real_class(index: int) -> Any:
        if mappings[index][QUANT_METHOD] in (ConfigStandIn, QuantizerStandIn):
            from blockwright.loading import register

            for mapping in mappings:
                del mapping[QUANT_METHOD]
            register()
        return mappings[index][QUANT_METHOD]

    class ConfigStandIn(registry.QuantizationConfigMixin):  # type: ignore[misc]
        @classmethod
        def from_dict(cls, *arguments: Any, **options: Any) -> Any:
            return real_class(0).from_dict(*arguments, **options)

    class QuantizerStandIn(registry.HfQuantizer):  # type: ignore[misc]
        def __new__(cls, *arguments: Any, **options: Any) -> Any:
            return real_class(1)(*arguments, **options)

    registry.register_quantization_config(QUANT_METHOD)(ConfigStandIn)
    registry.register_quantizer(QUANT_METHOD)(QuantizerStandIn)


class _RegistryFinder(MetaPathFinder):
    """Finds one module, as the other finders would, and has it loaded by ``_RegisteringLoader``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REGISTRY_MODULE:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if finder is not self and find else None
            if isinstance(spec, ModuleSpec) and spec.loader is not None:
                spec.loader = _RegisteringLoader(spec.loader, self)
                return spec
        return None


class _RegisteringLoader(Loader):
    """Runs the module with its own loader, leaves no trace, and registers the stand-ins."""

    def __init__(self, loader: Loader, finder: _RegistryFinder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        sys.meta_path.remove(self.finder)
        _register_stand_ins(module)
