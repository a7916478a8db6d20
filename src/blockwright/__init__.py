"""Blockwright fits a transformer to a budget, block by block, and proves the result.

    import blockwright

    result = blockwright.fit("path/to/model", budget=4.3, out="fitted")

Importing it loads no torch.  From then on ``transformers`` can load fitted folders.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blockwright import _transformers_hook

if TYPE_CHECKING:
    from blockwright.api import evaluate_model as evaluate_model
    from blockwright.api import generate_text as generate_text
    from blockwright.api import inspect_model as inspect_model
    from blockwright.api import kv_cache as kv_cache
    from blockwright.api import profile_model as profile_model
    from blockwright.api import score_blocks as score_blocks
    from blockwright.fitting import average_models as average_models
    from blockwright.fitting import fit as fit
    from blockwright.fitting import fit_recipe as fit_recipe
    from blockwright.fitting import heal_model as heal_model
    from blockwright.fitting import merge_adapter as merge_adapter
    from blockwright.fitting import price as price
    from blockwright.types import Budget as Budget
    from blockwright.types import FitResult as FitResult
    from blockwright.types import HealResult as HealResult
    from blockwright.types import Phase as Phase
    from blockwright.types import Plan as Plan
    from blockwright.types import Profile as Profile
    from blockwright.types import Workload as Workload

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(
        ("average_models", "fit", "fit_recipe", "heal_model", "merge_adapter", "price"),
        "blockwright.fitting",
    ),
    **dict.fromkeys(
        (
            *("evaluate_model", "inspect_model", "generate_text", "kv_cache", "profile_model"),
            "score_blocks",
        ),
        "blockwright.api",
    ),
    **dict.fromkeys(
        ("Budget", "FitResult", "HealResult", "Phase", "Plan", "Profile", "Workload"),
        "blockwright.types",
    ),
}

__all__ = [
    "Budget",
    "FitResult",
    "HealResult",
    "Phase",
    "Plan",
    "Profile",
    "Workload",
    "__version__",
    "average_models",
    "evaluate_model",
    "fit",
    "fit_recipe",
    "generate_text",
    "heal_model",
    "inspect_model",
    "kv_cache",
    "merge_adapter",
    "price",
    "profile_model",
    "score_blocks",
]


if not TYPE_CHECKING:  # a type checker takes the imports above, and sees misspelt names

    def __getattr__(name: str) -> Any:
        """The public names, imported when first used."""
        if name not in _HOMES:
            raise AttributeError(f"module 'blockwright' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


_transformers_hook.install()
