"""Counts of answers that reveal the fact or are broken text: in the verdict, on the page and in comparisons."""

from __future__ import annotations

import html

import pytest

from helpers.reported import FAR, NEAR, judged, log, logs, make_run
from unlora.report.answers import Count, worst_answers
from unlora.report.compare import Group, Section, as_json, comparison
from unlora.report.page import write_report
from unlora.report.read import read_run
from unlora.report.summary import summarise_run
from unlora.report.verdict import verdict


def run_with(folder, broken=0, given_away=0, **others):
    found = logs(unlearned=judged(log(0.4, NEAR), broken, given_away), **others)
    found["original"] = judged(log(0.99, FAR), 0, 40)
    if found["retrained"]:
        judged(found["retrained"], 0, 1)
    return make_run(folder, found)


def verdict_of(folder, *args, **others):
    run = read_run(run_with(folder, *args, **others))
    return verdict(run, summarise_run(run))


def test_the_headline_counts_answers_next_to_those_of_the_other_models(tmp_path):
    assert verdict_of(tmp_path, 2, 3).answers == (
        "3 of 40 answers still reveal the fact (original model: 40; retrained model: 1). "
        "2 of 40 answers are broken text (original model: 0; retrained model: 0)."
    )


@pytest.mark.parametrize(
    ("broken", "given_away", "label"),
    [
        (4, 0, "No difference found"),
        (5, 0, "No difference found, but the answers are broken text"),
        (0, 6, "No difference found"),
        (0, 7, "No difference found, but answers still reveal facts"),
    ],
)
def test_broken_text_and_revealed_facts_are_no_success(tmp_path, broken, given_away, label):
    """One-sided p-values of Fisher's exact test on counts out of 40.

    4 against 0: 0.058, 5 against 0: 0.027; 6 against 1: 0.054, 7 against 1: 0.028.
    """
    assert verdict_of(tmp_path, broken, given_away).label == label


def test_fisher_s_exact_test_by_hand():
    """3 of 3 against 0 of 3: only one of the 20 ways to choose three of six answers is as extreme, so p = 1/20."""
    assert not Count(3, 3).exceeds(Count(0, 3), 0.05)
    assert Count(3, 3).exceeds(Count(0, 3), 0.0501)


def test_the_worst_answers_are_shown(tmp_path):
    run = read_run(run_with(tmp_path, 3, 2))
    assert [(worst.kind, worst.question) for worst in worst_answers(run)] == [
        ("given_away", "Who keeps cat 39?"),
        ("broken", "Who keeps cat 2?"),
    ]
    page = html.unescape(write_report(tmp_path).read_text())
    assert "An answer that is broken text" in page
    assert "<strong>3 of 40</strong> broken answers to the forget questions" in page
    assert "<strong>2 of 40</strong> answers that give the fact away" in page


def test_counts_are_compared_between_runs(tmp_path):
    runs = [read_run(run_with(tmp_path / name, *counts)) for name, counts in {"a": (1, 2), "b": (5, 0)}.items()]
    section = Section("", [Group("one", runs[:1]), Group("both", runs)])
    table = comparison(section)
    places = [list(table.columns).index(name) for name in ("Revealed", "Broken")]
    shown = {row[0].text: [row[place].text for place in places] for row in table.rows}
    assert shown == {
        "one": ["2 of 40", "1 of 40"],
        "both": ["2 of 80", "6 of 80"],
        "original model": ["40 of 40", "0 of 40"],
        "retrained model": ["1 of 40", "0 of 40"],
    }
    assert as_json(section)[0]["given_away"]["value"] == 0.05


def test_more_utility_than_before_is_no_gain(tmp_path):
    better = make_run(tmp_path, logs(original=log(0.99, FAR, retain=0.5), unlearned=log(0.4, NEAR, retain=0.9)))
    run = read_run(better)
    summary = summarise_run(run)
    assert summary.kept.value > 1.1
    assert summary.share_kept.value == 1
    assert "nothing of it was lost" in verdict(run, summary).cost
    assert "is no gain" in verdict(run, summary).cost


@pytest.mark.parametrize(
    ("trained_on", "words"),
    [
        ({}, "measured on 10 rows of the retain set:"),
        ({"retain": 0}, "10 rows of the retain set, none of them trained on:"),
        ({"retain": 10}, "10 rows of the retain set, all of them trained on too:"),
        ({"retain": 3}, "10 rows of the retain set, 3 of them trained on too:"),
    ],
)
def test_the_rows_behind_the_utility_are_named(tmp_path, trained_on, words):
    run = read_run(make_run(tmp_path, metrics={"trained_on": trained_on}))
    assert words in verdict(run, summarise_run(run)).cost
