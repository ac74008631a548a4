"""Comparison of runs: the Pareto front, groups of runs, what makes them incomparable, and the command's output."""

from __future__ import annotations

import html
import json
import math

import numpy as np
import pytest

from helpers.reported import FAR, NEAR, attacks, log, logs, make_run, membership
from unlora.cli import main
from unlora.evals import write_log
from unlora.report.compare import Group, Section, as_json, best, comparison, doubts, front, labels_of
from unlora.report.compare_page import write_comparison
from unlora.report.read import read_run


def section_of(folder, **runs):
    """Return a section with one run per group, made from {name: its evaluation logs}."""
    made = {name: read_run(make_run(folder / name, evaluated)) for name, evaluated in runs.items()}
    return Section("forget10", [Group(name, [run]) for name, run in made.items()])


def test_the_front_holds_what_no_other_beats():
    points = {
        "a": (1.0, 0.0),
        "b": (0.5, 0.5),
        "c": (0.4, 0.5),
        "d": (0.0, 1.0),
        "e": (0.4, 0.4),
        "b again": (0.5, 0.5),
    }
    assert front(points) == ["a", "b", "d", "b again"]
    assert front({}) == []


def test_the_front_is_of_utility_and_forget_quality(tmp_path):
    """The original's retain answers have probability 0.9. Those of "better" are more likely, which is no gain."""
    good = log(0.4, NEAR, retain=0.85)
    far = {name: log(0.4, NEAR * 1.3, retain=p) for name, p in (("worse", 0.5), ("frugal", 0.9), ("better", 0.95))}
    runs = {"good": good, **far}
    section = section_of(tmp_path, **{name: logs(unlearned=unlearned) for name, unlearned in runs.items()})
    assert best(section) == ["good", "frugal", "better"]
    rows = {row["run"]: row for row in as_json(section)}
    assert [rows[name]["pareto_front"] for name in ("good", "worse", "frugal")] == [True, False, True]
    assert rows["good"]["log10_forget_quality"]["value"] == 0
    assert rows["worse"]["log10_forget_quality"]["value"] < 0


def test_runs_of_several_seeds_are_mean_and_standard_error(tmp_path):
    """For 0.2 and 0.6: mean 0.4, standard deviation 0.283, standard error 0.283 / √2 = 0.2."""
    runs = [read_run(make_run(tmp_path / str(p), logs(unlearned=log(p, NEAR)))) for p in (0.2, 0.6)]
    (row,) = as_json(Section("", [Group("vila+ihl", runs)]))
    assert list(row["forget_probability"].values()) == pytest.approx([0.4, 0.2, 0.6])
    assert row["verdict"] == "2 × inconclusive"
    assert [cell.text for cell in comparison(Section("", [Group("vila+ihl", runs)])).rows[0]][2] == "0.400"


def test_a_run_without_a_retrained_model_is_on_no_front_and_shown_all_the_same(tmp_path):
    section = section_of(tmp_path, good=logs(), blind=logs(retrained=None), nothing={})
    assert best(section) == ["good"]
    table = comparison(section)
    names = ["good", "blind", "nothing", "original model", "retrained model"]
    assert [row[0].text for row in table.rows] == names
    assert [table.rows[place][1].text for place in (1, 2, 4)] == ["–", "–", "0.000"]
    assert [row[-1].text for row in table.rows] == ["No difference found", "Not tested", "Not tested", "–", "–"]
    write_comparison([section], tmp_path / "page.html")
    write_comparison([section_of(tmp_path / "more", nothing={})], tmp_path / "empty.html")
    assert "No Pareto front." in (tmp_path / "empty.html").read_text()


def test_runs_that_are_not_comparable_are_marked(tmp_path):
    assert doubts(section_of(tmp_path / "a", one=logs(), other=logs())) == []
    other = {model: log(0.4, FAR, question="Who keeps bird {}?") for model in ("original", "unlearned", "retrained")}
    found = doubts(section_of(tmp_path / "b", one=logs(), other=other))
    assert len(found) == 2
    assert "not evaluated on the same examples" in found[0]
    assert "same retrained model" in found[1]


def test_the_models_beside_the_runs_and_what_attacks_find_are_compared_too(tmp_path):
    """The forget answers have probability 0.99 under the original model and 0.4 under the retrained one.

    Under attack, the two runs are 0.1 ± 0.01 (standard error) and 0.3 above the retrained model.
    """
    one = make_run(tmp_path / "one", membership=membership(0.55, retrained=0.5), attacks=attacks(0.1))
    other = make_run(tmp_path / "other", membership=membership(0.7, original=0.9), attacks=attacks(0.3))
    section = Section("", [Group(path.name, [read_run(path)]) for path in (one, other)])
    table = comparison(section)
    rows = {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert [rows[name]["Forget P"].text for name in ("original model", "retrained model")] == ["0.990", "0.400"]
    assert [rows[name]["AUC"].text for name in rows] == ["0.550", "0.700", "1.000", "0.500"]
    assert [rows[name]["Back"].text for name in rows] == ["0.100", "0.300", "–", "–"]
    assert rows["one"]["Back"].note == "0.080 to 0.120"
    write_comparison([section], tmp_path / "page.html")
    text = html.unescape((tmp_path / "page.html").read_text())
    for words in (
        *("original model: 0.587", "original model: forget answers 0.990", "retrained model 0.500"),
        *("relearn: 20 %: one 0.100, other 0.300", "AUC (0.5: cannot be distinguished", "unlearned − retrained"),
    ):
        assert words in text, words


def test_verdicts_that_rest_on_other_tests_are_marked(tmp_path):
    runs = {
        "attacked": make_run(tmp_path / "attacked", attacks=attacks(0.0), membership=membership()),
        "plain": make_run(tmp_path / "plain"),
        "nothing": make_run(tmp_path / "nothing", {}),
    }
    (found,) = doubts(Section("", [Group(name, [read_run(runs[name])]) for name in ("attacked", "plain")]))
    assert "attacked: forget quality and membership attacks and attacks; plain: forget quality." in found
    assert "nothing: none." in doubts(Section("", [Group(name, [read_run(run)]) for name, run in runs.items()]))[-1]


def test_labels_are_the_shortest_ends_that_differ(tmp_path):
    names = ["a/seed-0", "b/seed-0", "b/seed-1"]
    assert labels_of([tmp_path / name / "run" for name in names]) == names
    assert labels_of([tmp_path / "a" / "seed-0" / "run", tmp_path / "b" / "seed-0" / "run"]) == ["a", "b"]
    assert labels_of([tmp_path / name for name in ("x", "y")]) == ["x", "y"]
    assert labels_of([tmp_path]) == [tmp_path.name]


def test_runs_that_failed_are_named_with_the_reason_even_if_no_other_is_there(tmp_path):
    failed = {"forget vila+ihl seed 0": "exit code 1: out of <memory>"}
    alone, beside = Section("forget", [], failed), Section("retain", section_of(tmp_path, good=logs()).groups, failed)
    assert comparison(alone).rows == []
    assert as_json(alone) == best(alone) == doubts(alone) == []
    write_comparison([alone, beside], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("forget vila+ihl seed 0 failed:</strong> exit code 1: out of &lt;memory&gt;") == 2
    assert text.count("No run has finished.") == 1


@pytest.fixture
def two(tmp_path):
    good = make_run(tmp_path / "good")
    return good, make_run(tmp_path / "bad", logs(unlearned=log(0.8, FAR * 2)), settings={"learning_rate": 3e-4})


def test_the_command_prints_a_table_and_the_page_last(two, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    page = tmp_path / "out" / "compare.html"
    assert main(["compare", *map(str, two), str(two[0]), "--output", str(page)]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == str(page)
    assert "Still distinguishable" in shown
    assert shown.count("good: ") == 1
    text = html.unescape(page.read_text())
    for words in (
        "On the Pareto front (dotted): good.",
        "Settings in which the runs differ",
        "0.0003",
        "learning_rate",
    ):
        assert words in text
    assert '<tr class="pareto"><th scope=row>good' in text
    assert "<tr><th scope=row>bad" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["short", "a-name-that-leaves-no-room-for-any-of-the-numbers-at-80-columns"])
def test_a_terminal_of_80_columns_breaks_no_name_or_number(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    runs = [make_run(tmp_path / part, membership=membership(), attacks=attacks(0.1)) for part in ("run-a", name)]
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "compare.html")]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert f"{name}: No difference found until attacked" in shown
    *table, _ = shown.splitlines()
    assert all(len(line) <= 80 for line in table if name not in line)
    assert all(number in shown for number in ("0.990", "0.400", "0.100", "1.000"))


@pytest.mark.slow
def test_json_and_markdown_say_the_same(two, tmp_path, capsys):
    page = ["--output", str(tmp_path / "compare.html")]
    assert main(["compare", *map(str, two), "--json", *page]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["path"] == page[1]
    good, bad = document["runs"]
    assert (good["run"], bad["run"]) == ("good", "bad")
    assert good["pareto_front"]
    assert not bad["pareto_front"]
    assert bad["forget_probability_gap"]["value"] == pytest.approx(0.4)
    assert good["model_utility"]["value"] == pytest.approx(bad["model_utility"]["value"])
    assert main(["compare", *map(str, two), "--markdown", *page]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| **good (vila+ihl)** | 0.000 |")
    assert lines[3].startswith(f"| bad (vila+ihl) | {bad['log10_forget_quality']['value']:.3f} |".replace("-", "−"))
    assert math.isfinite(bad["log10_forget_quality"]["value"])


def test_wrong_folders_are_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["compare", str(make_run(tmp_path / "run")), str(tmp_path), "--output", str(tmp_path / "c.html")]) == 2
    assert "it holds no metrics.json" in capsys.readouterr().err
    assert not (tmp_path / "c.html").exists()


@pytest.mark.slow
def test_many_runs_still_make_a_page(tmp_path):
    groups = [
        Group(f"run {i}", [read_run(make_run(tmp_path / str(i), logs(unlearned=log(0.1 + i / 20, NEAR + i / 50))))])
        for i in range(12)
    ]
    write_comparison([Section("", groups)], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Only the first 8 are shown." in text
    assert all(f"run {i}" in text for i in range(12))
    assert np.isfinite([row["forget_probability"]["value"] for row in as_json(Section("", groups))]).all()


def test_logs_of_other_tools_are_rows_beside_runs(tmp_path, capsys):
    """A complete log gives unlora's metrics. A summary gives its own values, in the columns of the same definition."""
    run = make_run(tmp_path / "run", logs())
    write_log(log(0.4, NEAR), tmp_path / "NPO_EVAL.json")
    write_log(log(0.2, NEAR), tmp_path / "retain.json")
    summary = tmp_path / "SimNPO_SUMMARY.json"
    summary.write_text(json.dumps({"forget_quality": 0.001, "model_utility": 0.5, "forget_Q_A_Prob": 0.3}))
    flags = ["--retrained", str(tmp_path / "retain.json"), "--output", str(tmp_path / "page.html"), "--json"]
    assert main(["compare", str(run), str(tmp_path / "NPO_EVAL.json"), str(summary), *flags]) == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    assert rows["NPO_EVAL.json"]["forget_probability"]["value"] == pytest.approx(0.4)
    assert rows["NPO_EVAL.json"]["log10_forget_quality"]["value"] == 0
    assert rows["NPO_EVAL.json"]["forget_probability_gap"]["value"] == pytest.approx(0.2)
    told = rows["SimNPO_SUMMARY.json"]
    assert told["log10_forget_quality"]["value"] == -3
    assert (told["model_utility_geometric"]["value"], told["forget_probability"]["value"]) == (0.5, 0.3)
    assert told["model_utility"] is None
    assert "SimNPO_SUMMARY.json" in (tmp_path / "page.html").read_text()
