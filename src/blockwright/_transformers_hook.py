"""Make transformers know Blockwright's folders, whichever of the two is imported first.

Importing transformers' quantizers takes seconds and loads torch, so ``import blockwright`` must not
do it.  If they are loaded already, ours is registered at once; if not, a finder waits for
``transformers.quantizers.auto`` and registers ours right after that module has run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRY_MODULE = "transformers.quantizers.auto"
"""The module that maps names to quantizers."""


def install() -> None:
    """Register our quantizer now, or as soon as transformers can take it."""
    if any(isinstance(finder, _RegistryFinder) for finder in sys.meta_path):
        return
    if REGISTRY_MODULE in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _RegistryFinder())


def _register() -> None:
    """From the submodule: ``blockwright.loading`` itself may be what imported transformers."""
    from blockwright.loading.quantizer import register

    register()


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
    """Runs the module with its own loader, leaves no trace, and registers."""

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
        _register()
