"""Runs evaluated with MUSE or lm-evaluation-harness: their numbers on the page, in the verdict and in comparisons."""

from __future__ import annotations

import html
import math

import pytest

from helpers.reported import make_run, muse, tasks
from unlora.cli import main
from unlora.common.errors import InputError
from unlora.common.files import write_json
from unlora.report.compare import Group, Section, as_json, best, comparison, doubts
from unlora.report.compare_page import write_comparison
from unlora.report.page import write_report
from unlora.report.read import read_run
from unlora.report.summary import summarise_run
from unlora.report.verdict import verdict

MODELS = {"scores_original": muse(0.9, 0.8, 0.7, above=50), "scores_unlearned": muse(), "scores_retrained": muse(0.45)}


def verdict_of(folder, **files):
    run = read_run(make_run(folder, {}, **files))
    return verdict(run, summarise_run(run))


def page_of(folder, **files):
    return html.unescape(write_report(make_run(folder, {}, **files)).read_text())


def test_muse_s_numbers_by_hand(tmp_path):
    """40 evenly spaced values from 30 % to 50 % have the sample variance 10² · 41 · 40 / (3 · 39²) = 35.94.

    The standard error of their mean is √(35.94 / 40) = 0.948 points.
    """
    summary = summarise_run(read_run(make_run(tmp_path, {}, **MODELS)))
    known = summary.scores["knowmem_f"]["unlearned"]
    assert (known.value, known.high - known.value) == (pytest.approx(40), pytest.approx(1.96 * 0.948, rel=1e-3))
    assert summary.scores["privleak"]["unlearned"].value == pytest.approx(0)
    assert summary.scores["privleak"]["original"].value == pytest.approx(-100)
    assert summary.kept.value == pytest.approx(60 / 70)
    error = 60 / 70 * 0.948 * math.hypot(1 / 60, 1 / 70)
    assert summary.kept.high == pytest.approx(60 / 70 + 1.96 * error, rel=1e-3)


def test_a_group_of_tasks_is_one_number_and_axes_are_means_over_tasks(tmp_path):
    """The mean of 0.3 and 0.4, each with standard error 0.02, is 0.35 with standard error 0.02 / √2."""
    summary = summarise_run(read_run(make_run(tmp_path, {}, scores_unlearned=tasks())))
    assert list(summary.scores) == ["wmdp_bio acc", "wmdp_cyber acc", "mmlu acc"]
    utility, forgetting = summary.axes.points["unlearned"]
    assert (utility.value, forgetting.value) == (0.5, pytest.approx(0.35))
    assert forgetting.high == pytest.approx(0.35 + 1.96 * 0.02 / 2**0.5)


def test_muse_s_unseen_texts_decide(tmp_path):
    """The AUC is 0.5 if the forget texts have the scores of the unseen texts, and 1 if all are 50 higher.

    The costly run keeps 60 / 70 = 85.7 % of the utility.
    """
    cheap = verdict_of(tmp_path / "a", **MODELS | {"scores_unlearned": muse(retain=0.7)})
    assert cheap.state == "alike"
    assert "min_k_40: AUC 0.500 ± 0.065, original 1.000 ± 0.002, retrained 0.500" in cheap.sentence
    assert "Knowledge of the forget set (knowmem_f) went from 80 to 40" in cheap.sentence
    costly = verdict_of(tmp_path / "b", **MODELS)
    assert costly.label == "No difference found, but at a high cost"
    assert "Knowledge of the retain set (knowmem_r) went from 70 to 60: 85.7 % of it was kept" in costly.cost
    assert verdict_of(tmp_path / "c", **MODELS | {"scores_unlearned": muse(above=50)}).state == "apart"


def test_without_unseen_texts_only_the_change_is_told(tmp_path):
    found = verdict_of(tmp_path / "a", scores_original=tasks(0.6), scores_unlearned=tasks())
    assert found.state == "untested"
    assert "Accuracy on subjects to forget went from 0.65 to 0.35" in found.sentence
    assert "Accuracy on subjects to keep went from 0.5 to 0.5: 100.0 % of it was kept" in found.cost
    alone = verdict_of(tmp_path / "b", scores_unlearned=tasks())
    assert "is 0.35 (95 % interval 0.322 to 0.378)" in alone.sentence
    assert "The original model's is not known" in alone.cost


@pytest.mark.slow
def test_the_page_shows_all_models_and_what_is_missing(tmp_path):
    text = page_of(tmp_path / "a", **MODELS)
    for shown in ("MUSE, with 95 % intervals", "verbmem_f", "privleak", "knowledge of the retain set (knowmem_r)"):
        assert shown in text, shown
    assert "Nothing was evaluated." not in text
    assert "The original model's values are missing." not in text
    text = page_of(tmp_path / "b", scores_unlearned=tasks())
    assert "lm-evaluation-harness, with 95 % intervals" in text
    assert "The original model's values are missing." in text


def test_a_bench_keeps_the_log_beside_the_run(tmp_path):
    run = make_run(tmp_path / "run", {})
    write_json(tmp_path / "scores.json", tasks())
    assert read_run(run).readings.keys() == {"unlearned"}


def test_runs_are_compared_by_the_benchmark_s_own_axes(tmp_path):
    """Lower accuracy on subjects to forget is better. "deep" forgets most, "kind" keeps most, "poor" does neither."""
    values = {"deep": (0.1, 0.5), "kind": (0.3, 0.6), "poor": (0.4, 0.5)}
    runs = {
        name: read_run(make_run(tmp_path / name, {}, scores_original=tasks(0.6, 0.7), scores_unlearned=tasks(*pair)))
        for name, pair in values.items()
    }
    section = Section("bio", [Group(name, [run]) for name, run in runs.items()])
    assert best(section) == ["deep", "kind"]
    assert comparison(section).columns == ["Run", "Kept", "wmdp_bio acc", "wmdp_cyber acc", "mmlu acc", "Verdict"]
    assert as_json(section)[1]["mmlu acc"]["value"] == 0.6
    assert doubts(section) == []
    write_comparison([section], tmp_path / "page.html")
    text = html.unescape((tmp_path / "page.html").read_text())
    assert "forgetting downwards. On the Pareto front (dotted): deep, kind." in text
    assert text.count("<svg") == 1  # there are no plots of numbers that these runs do not have


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"scores_unlearned": {"scores": {}}}, "unlora did not write this file"),
        ({"scores_unlearned": {"asked": [], "tasks": {"mmlu": {"acc": 0.5}}}}, "KeyError"),
        ({"scores_original": muse(), "scores_unlearned": tasks()}, "not of the same benchmark"),
    ],
)
def test_a_log_that_unlora_did_not_write_is_named(tmp_path, files, reason):
    run = make_run(tmp_path, {}, **files)
    with pytest.raises(InputError, match=reason):
        read_run(run)
    assert main(["report", str(run)]) == 2
