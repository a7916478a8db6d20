"""The smallest problem there is: one option at one site."""

from __future__ import annotations

from blockwright.types import Option, Problem


def problem_of(option: Option) -> Problem:
    """A problem of one site, with which a library can be filled."""
    return Problem(
        model="m",
        fingerprint="f",
        statistics="s",
        options=(option,),
        linear_weights=4,
        fixed_bytes=0,
        original_bytes=8,
    )
