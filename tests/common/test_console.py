"""Tables that are wider than the terminal are printed in full."""

from __future__ import annotations

from rich.table import Table

from unlora.common.console import PlainConsole


def test_a_table_that_is_wider_than_the_terminal_keeps_every_word(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("method", *(f"column{number}" for number in range(9)))
    table.add_row("my_initialiser+my_long_loss", *["0.123 ± 0.045"] * 9)
    console = PlainConsole()
    console.print(table)
    shown = capsys.readouterr().out
    assert "my_initialiser+my_long_loss" in shown
    assert "column8" in shown
    assert "…" not in shown
    assert console.width == 20
