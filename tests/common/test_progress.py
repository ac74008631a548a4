"""Without a terminal, progress bars become plain lines. In quiet mode, nothing is shown."""

from __future__ import annotations

import io
import sys

import pytest
from tqdm import tqdm

from unlora.common.progress import DELAY, INTERVAL, PlainLines, Silence, bar, is_quiet, shown, terminal


class Clock:
    """A clock that is set by the test."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def out():
    return io.StringIO()


def output_of_bar(clock, out, steps, seconds, total=None, **settings):
    """Return the output of a bar of `steps` steps that take `seconds` each."""
    lines = PlainLines(out, clock)
    with tqdm(total=total, file=lines, mininterval=0, miniters=1, **settings) as shown_bar:
        for _ in range(steps):
            clock.now += seconds
            shown_bar.update(1)
    return out.getvalue()


def test_a_line_comes_after_the_delay_then_at_intervals_and_at_the_end(clock, out):
    text = output_of_bar(clock, out, 40, 1.0, total=40, desc="training", unit=" steps", postfix={"loss": 2})
    assert "\r" not in text
    assert "\x1b" not in text
    done = [line.split()[1] for line in text.splitlines()]
    first = int(DELAY)
    assert done == [f"{step}/40" for step in (first, first + 10, first + 20, first + 30, 40)]
    assert INTERVAL == 10
    line = text.splitlines()[0]
    assert line.startswith("training: 2/40 (5%), ")
    assert " left, " in line
    assert line.endswith(", loss=2")


def test_a_step_under_the_delay_leaves_no_line(clock, out):
    assert output_of_bar(clock, out, 4, 0.4, total=4, desc="loading") == ""


def test_a_bar_of_unknown_length_has_lines_too(clock, out):
    text = output_of_bar(clock, out, 5, 1.0, desc="texts", unit=" texts")
    assert text.splitlines()[0].startswith("texts: 2 texts [")


def test_other_text_is_passed_on_unchanged(clock, out):
    lines = PlainLines(out, clock)
    lines.write("a warning\n")
    lines.write("\n")
    lines.write("no newline")
    assert out.getvalue() == "a warning\n\nno newline"


def test_a_second_bar_of_the_same_name_starts_anew(clock, out):
    for _ in range(2):
        output_of_bar(clock, out, 3, 1.0, total=3, desc="evaluation")
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["2/3", "3/3"] * 2


def test_within_a_terminal_block_stderr_is_lines_or_silence(capsys):
    before = sys.stderr
    with terminal():
        assert isinstance(sys.stderr, PlainLines)
        assert not is_quiet()
        print("kept", file=sys.stderr)
    with terminal(quiet=True):
        assert isinstance(sys.stderr, Silence)
        assert is_quiet()
        print("dropped", file=sys.stderr)
    assert sys.stderr is before
    assert capsys.readouterr().err == "kept\n"


def test_the_stream_of_a_terminal_is_left_alone(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with terminal():
        assert sys.stderr is screen
        for _ in bar(range(3), delay=0, desc="drawn"):
            pass
    assert "\rdrawn: 100%" in screen.getvalue()


def test_shown_counts_what_is_done_so_far_up_to_a_total(capsys):
    with shown("evaluation", " texts", 10) as progress:
        for done in (2, 7, 10):
            progress(done)
    with bar(range(4), delay=0, desc="x") as four:
        assert list(four) == [0, 1, 2, 3]
        assert four.n == four.total == 4
