"""The documentation and `unlora ls` list every choice with its defaults, and the README every public name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import unlora
from unlora.cli import main
from unlora.importance import INITIALISERS
from unlora.losses.table import LOSSES, RETAIN_LOSSES
from unlora.pipeline.choices import all_choices

ROOT = Path(__file__).parents[2]
METHODS = (ROOT / "docs" / "methods.md").read_text()
README = (ROOT / "README.md").read_text()


KINDS = ("initialisers", "losses", "teachers", "retain_losses")


@pytest.mark.parametrize("kind", KINDS)
def test_the_tables_of_methods_md_are_what_the_command_prints(kind, capsys):
    assert main(["ls", kind, "--markdown"]) == 0
    assert f"<!-- unlora ls {kind} --markdown -->\n\n{capsys.readouterr().out}\n" in METHODS


@pytest.mark.parametrize("width", [None, 20, 80, 400])
def test_everything_that_there_is_to_choose_from_is_shown_whole(width, monkeypatch, capsys):
    """Nothing is cut off at any width. The output is not a terminal in this test."""
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out
    shown = " ".join(lines.split())
    assert "…" not in shown
    for table in all_choices().values():
        for name, *rest in table.rows:
            default = " (default)" if name in ("lora", "distil") else ""
            columns = (column.partition(" of a ")[0] for column in table.columns[1:])
            assert f" {name}{default} {' '.join(map('{}: {}'.format, columns, rest))} " in f" {shown} "
    longest = max(len(word) for word in shown.split())
    assert all(len(line) <= max(width or 80, longest + 6) for line in lines.splitlines())


def test_the_table_has_the_settings_that_each_initialiser_reads():
    settings = {name: row[1] for name, *row in all_choices()["initialisers"].rows}
    assert "sigma = " in settings["vila"]
    assert "sigma = " not in settings["fila"]
    assert settings["pissa"] == settings["lora"] == "–"


def test_the_table_says_what_each_loss_needs(capsys):
    main(["ls", "losses", "--markdown"])
    shown = {line.split("`")[1]: line for line in capsys.readouterr().out.splitlines() if "`" in line}
    assert "beta = 0.1 | alternate answers; reference: log-probabilities, once | nll" in shown["dpo"]
    assert "alternate answers | nll" in shown["idk"]
    assert "– | – | none" in shown["ga"]
    assert "| reference: logits, each step (for the retain loss) | kl |" in shown["kl"]
    assert "| reference: hidden states, each step (for the retain loss) | hidden_mse |" in shown["rmu"]
    assert "reference: logits, each step" in shown["undial"]


def test_an_unknown_kind_is_refused(capsys):
    assert main(["ls", "loses"]) == 2
    assert "did you mean 'losses'" in capsys.readouterr().err


@pytest.mark.parametrize("name", unlora.__all__)
def test_every_public_name_is_importable_documented_and_in_the_readme(name):
    assert getattr(unlora, name).__doc__
    assert name in README


def test_every_paper_of_a_method_has_its_title_in_the_index():
    titles = yaml.safe_load((ROOT / "docs" / "data" / "titles.yaml").read_text())
    papers = [choice.paper for table in (INITIALISERS, LOSSES, RETAIN_LOSSES) for choice in table.values()]
    assert {number for paper in papers for number in re.findall(r"arXiv (\d{4}\.\d{5})", paper)} == titles.keys()


def test_the_readme_s_file_tree_is_the_package_s():
    tree = re.search(r"```text\nsrc/unlora/\n(.*?)```", README, re.DOTALL).group(1)
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    package = ROOT / "src" / "unlora"
    actual = {path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert listed == actual
