"""Text from models, files and users cannot control the terminal."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.table import Table

from unlora.cli import main
from unlora.cli.output import Answer, Mode
from unlora.common.console import PlainConsole
from unlora.common.errors import InputError, Problem
from unlora.common.plain import PlainStream, plain

# Sets the window title, clears the screen, hides the text that follows, turns it red and reverses its direction.
# Half of a surrogate pair and markup of rich come last.
EVIL = "\x1b]0;title\x07 \x1b[2J\x1b[8m \x9b31m \x7f \r \u202e abc \ud800 [bold]é[/x]"
ACTIVE = "\x1b\x07\x9b\x7f\r\u202e\ud800"


def test_active_characters_are_marked_and_the_others_stay():
    assert not set(ACTIVE) & set(plain(EVIL))
    assert plain("\x1b[2J\x7f\x9b") == "␛[2J␡\N{REPLACEMENT CHARACTER}"
    assert plain("a\n\tü ל 日本 🙂 [bold]") == "a\n\tü ל 日本 🙂 [bold]"


def test_bars_are_redrawn_on_a_terminal_only():
    for bars, expected in ((True, "\r 3/4 \x1b[A␛[2J"), (False, "␍ 3/4 ␛[A␛[2J")):
        stream = io.StringIO()
        PlainStream(stream, bars).write("\r 3/4 \x1b[A\x1b[2J")
        assert stream.getvalue() == expected


def test_characters_that_the_terminal_cannot_show_are_escaped():
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    PlainStream(stream).write("é\x1b")
    stream.flush()
    assert written.getvalue() == rb"\xe9\u241b"


def test_a_table_shows_text_as_it_is_and_keeps_its_own_colours(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", PlainStream(stream))
    table = Table("head")
    table.add_row(EVIL, style="bold")
    PlainConsole().print(table)
    shown = stream.getvalue()
    assert "\x1b[1m" in shown
    assert "\x1b[8m" not in shown
    assert "\x1b[2J" not in shown
    assert not set(ACTIVE) - {"\x1b"} & set(shown)
    assert "[bold]é[/x]" in shown


def test_json_keeps_every_character_and_escapes_the_active_ones(capsys):
    value = {"answer": EVIL.replace("\ud800", "")}
    Mode(False, True).tell(Answer(value, lambda: None))
    shown = capsys.readouterr().out
    assert not set(ACTIVE) & set(shown)
    assert json.loads(shown) == value


@pytest.mark.parametrize(
    "argv", [[EVIL], ["ls", EVIL], ["ls", f"--{EVIL}"], ["verify", EVIL], ["unlearn", "--config", EVIL]]
)
def test_errors_and_printed_lines_are_plain(argv, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert not set(ACTIVE) & set(error)
    assert "Fix:" in error


def test_a_message_stays_short_whatever_is_in_it():
    long = Problem("a" * 500, "v" * 10_000, "r\n" * 5_000, "f" * 5_000)
    for problems in ([long], [long] * 50, [Problem("r", 0, "too small", "use 1")] * 500):
        text = f"error: {InputError(*problems)}"
        assert len(text) < 1000
        assert "Fix:" in text
    assert str(InputError(*[Problem("r", 0, "too small", "use 1")] * 500)).endswith("more")
    assert len(str(long).splitlines()) == 1
