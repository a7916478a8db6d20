"""keep and drop: formats that nothing fills."""

from __future__ import annotations

import pytest

from blockwright.errors import CandidateError, FormatError
from blockwright.formats import format_from_spec
from blockwright.formats.drop import DropFormat
from blockwright.formats.keep import KeepFormat
from blockwright.types import PackedFormat, SiteKind


def test_keep_costs_what_the_checkpoint_holds() -> None:
    assert KeepFormat().stored_bytes((3, 5)) == 30
    assert KeepFormat(element_bytes=4).stored_bytes((3, 5)) == 60
    assert format_from_spec(KeepFormat(element_bytes=4).spec()) == KeepFormat(element_bytes=4)


def test_drop_costs_nothing_and_stands_at_blocks_and_parts() -> None:
    assert DropFormat().stored_bytes((3, 5)) == 0
    assert DropFormat.kinds == {SiteKind.BLOCK, SiteKind.PART}
    assert {SiteKind.LINEAR, SiteKind.TABLE, SiteKind.BLOCK} <= KeepFormat.kinds


@pytest.mark.parametrize("format", [KeepFormat, DropFormat])
def test_neither_has_parameters_methods_or_a_packed_module(
    format: type[KeepFormat | DropFormat],
) -> None:
    name = format().name
    assert format.default_method is None
    assert not issubclass(format, PackedFormat)
    with pytest.raises(CandidateError, match=f"did you mean '{name}'"):
        format.parse(f"{name}-g64")


def test_a_spec_of_no_known_format_is_refused() -> None:
    with pytest.raises(FormatError, match=r"unknown format 'xyz'; this Blockwright knows .*int"):
        format_from_spec({"format": "xyz", "version": 1})
    with pytest.raises(FormatError, match="unknown format None"):
        format_from_spec({})
