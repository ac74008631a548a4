"""Counts of answers in the table of results."""

from __future__ import annotations

from helpers.reported import NEAR, judged, log
from unlora.bench.table import _row
from unlora.benchmarks import OWN_SETS


def test_counts_are_means_over_seeds_with_their_total():
    """1 and 4 of 40 answers: mean 2.5, standard deviation 2.12, standard error 2.12/√2 = 1.5."""
    known = {seed: OWN_SETS.read(judged(log(0.4, NEAR), count, 2)).values for seed, count in {3: 1, 5: 4}.items()}
    assert _row("a", "forget", {3: known[3]}, OWN_SETS, "").text("broken answers") == "1 of 40"
    row = _row("a", "forget", known, OWN_SETS, "")
    assert (row.text("broken answers"), row.text("facts revealed")) == ("2.5 ± 1.5 of 40", "2.0 ± 0.0 of 40")
    assert row.as_json()["of"] == {"facts revealed": 40, "broken answers": 40}
    assert (row.as_json()["seeds"], row.as_json()["values"]["broken answers"]) == ([3, 5], [1, 4])
