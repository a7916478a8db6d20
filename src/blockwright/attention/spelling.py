"""Policies as text: ``moba@block=64,keep=3``, on the command line, in plans and in folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from blockwright.attention.budget import name_of
from blockwright.attention.policy import Policy
from blockwright.errors import AttentionError, FormatError
from blockwright.registry import policy_named

POLICY_VERSION = 1


def text_of(policy: Policy) -> str:
    """Name and the hyperparameters that are not the defaults; ``registry.policy_named`` inverts
    it."""
    plain = type(policy)()
    given = {item.name: getattr(policy, item.name) for item in fields(policy)}  # type: ignore[arg-type]
    changed = [f"{n}={_spelled(v)}" for n, v in given.items() if v != getattr(plain, n)]
    return name_of(policy) + ("@" + ",".join(changed) if changed else "")


def spec_of(policy: str) -> dict[str, Any]:
    """As a fitted folder's config holds it."""
    return {"policy": text_of(policy_named(policy)), "version": POLICY_VERSION}


def policy_of_spec(spec: Mapping[str, Any]) -> str:
    """Inverse of ``spec_of``; raises ``FormatError`` for a newer version."""
    if spec.get("version", 0) > POLICY_VERSION:
        raise FormatError(
            f"this folder has an attention policy of version {spec['version']}, this Blockwright"
            f" reads up to {POLICY_VERSION}; upgrade Blockwright"
        )
    return text_of(policy_named(str(spec["policy"])))


def policies_of(text: str) -> str | dict[int, str]:
    """A policy as it stands, or those of a JSON file: ``{"0": "dense", "1": "mean@keep=8"}``.

    Raises ``AttentionError`` for a file that cannot be read or holds something else.
    """
    if not text.endswith(".json"):
        return text
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise AttentionError(f"policies {text}: {error.strerror or error}") from None
    except ValueError as error:
        raise AttentionError(f"policies {text}: no JSON ({error})") from None
    if not isinstance(found, dict) or not all(
        block.isdecimal() and isinstance(policy, str) for block, policy in found.items()
    ):
        raise AttentionError(
            f'policies {text}: needs a policy per block, as {{"0": "mean@keep=8"}}'
        )
    return {int(block): policy for block, policy in found.items()}


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
