"""Progress: time left is known after one unit, lines are few, stdout stays clean."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from blockwright.progress import (
    PLAIN_SECONDS,
    Meter,
    PlainProgress,
    Progress,
    RichProgress,
    SilentProgress,
    format_count,
    format_seconds,
    seconds_left,
    stderr_progress,
)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def rich_progress(stream: io.StringIO, clock: Clock) -> RichProgress:
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    return RichProgress(console, clock)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_seconds_read_like_a_clock(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_time_left_follows_the_pace() -> None:
    assert seconds_left(5, 20, 10.0) == 30.0
    assert seconds_left(20, 20, 10.0) == 0.0
    assert seconds_left(0, 20, 10.0) is None
    assert seconds_left(5, None, 10.0) is None


def test_before_the_first_unit_the_expectation_is_told() -> None:
    assert seconds_left(0, 20, 10.0, expected_seconds=60.0) == 50.0
    assert seconds_left(0, 20, 80.0, expected_seconds=60.0) == 0.0
    assert seconds_left(5, 20, 10.0, expected_seconds=999.0) == 30.0


def test_time_left_counts_down_between_units() -> None:
    clock = Clock()
    meter = Meter("build", 4, "blocks", None, clock)
    clock.now += 10
    meter.advance(1)
    assert meter.left == 30.0
    clock.now += 4
    assert meter.left == 26.0
    assert meter.line() == "build: 1/4 blocks, 0:14, 0:26 left"


def test_what_comes_before_the_first_unit_sets_no_pace() -> None:
    clock = Clock()
    meter = Meter("sample", 100, "tokens", None, clock)
    clock.now += 60
    meter.advance(0)
    assert meter.left_text() == ""
    clock.now += 1
    meter.advance(10)
    assert meter.left == 9.0
    assert meter.line() == "sample: 10/100 tokens, 1:01, 0:09 left"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0.5, "0.5"), (7, "7"), (99.94, "99.9"), (1234.567, "1235"), (1e7, "10000000")],
)
def test_counts_are_read_at_a_glance(count: float, text: str) -> None:
    assert format_count(count) == text


def test_a_long_stage_says_at_once_how_long() -> None:
    clock, stream = Clock(), io.StringIO()
    with PlainProgress(stream, clock).stage("reload", expected_seconds=12.0):
        assert stream.getvalue() == "reload: 0:00, 0:12 left\n"


def test_plain_lines_are_few_and_the_last_sums_up() -> None:
    clock, stream = Clock(), io.StringIO()
    with PlainProgress(stream, clock).stage("capture", total=100, unit="blocks") as stage:
        for _ in range(100):
            clock.now += 0.2
            stage.advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 20 / PLAIN_SECONDS + 1
    assert lines[0] == "capture: 25/100 blocks, 0:05, 0:15 left"
    assert lines[-1] == "capture: 100/100 blocks, 0:20"


def test_short_stages_leave_no_line() -> None:
    clock, stream = Clock(), io.StringIO()
    for progress in (PlainProgress(stream, clock), SilentProgress()):
        with progress.stage("load", total=2) as stage:
            clock.now += 1
            stage.advance(2)
    assert stream.getvalue() == ""


def test_a_stage_that_fails_says_nothing_more() -> None:
    clock, stream = Clock(), io.StringIO()

    def fail() -> None:
        clock.now += 3
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), PlainProgress(stream, clock).stage("load", 2):
        fail()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("total", [None, 3])
def test_stages_nest_and_take_notes(total: float | None) -> None:
    clock, stream = Clock(), io.StringIO()
    kinds: list[Progress] = [
        PlainProgress(stream, clock),
        rich_progress(stream, clock),
        SilentProgress(),
    ]
    for progress in kinds:
        with progress.stage("outer", total, "parts") as outer:
            with progress.stage("inner", 2) as inner:
                inner.advance(2)
                inner.note("inner says [this]")
            outer.advance(0.5)
        progress.note("done")
    assert stream.getvalue().count("inner says [this]") == 2
    assert stream.getvalue().count("done") == 2


def test_a_terminal_gets_a_bar_with_time_left_and_a_line_that_stays() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = rich_progress(stream, clock)
    with progress.stage("capture", total=4, unit="blocks") as stage:
        clock.now += 30
        stage.advance()
        progress.bars.refresh()
        shown = stream.getvalue()
    assert "1/4 blocks  0:30  1:30 left" in shown
    assert stream.getvalue().rstrip().endswith("capture: 1/4 blocks, 0:30")


@pytest.mark.parametrize("width", [20, 40, 60, 89, 90, 200])
def test_a_stage_takes_one_line_on_any_terminal_and_shows_the_time_left(width: int) -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    progress = RichProgress(console, clock)
    with progress.stage("refine uniform int4-g128:gptq", 22, "blocks") as stage:
        clock.now += 3600
        stage.advance(2)
        lines = console.render_lines(progress.bars.get_renderable(), pad=False)
    assert len(lines) == 1
    assert "10:00:00 left" in "".join(segment.text for segment in lines[0])


def test_a_terminal_can_be_used_again_after_a_failure() -> None:
    stream = io.StringIO()
    progress = rich_progress(stream, Clock())
    with pytest.raises(ValueError, match="broken"), progress.stage("first", 2):
        raise ValueError("broken")
    with progress.stage("second", 2) as stage:
        stage.advance()
    assert progress.open_stages == 0


def test_progress_goes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    progress = stderr_progress()
    assert isinstance(progress, PlainProgress)
    progress.note("working")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "working\n")
