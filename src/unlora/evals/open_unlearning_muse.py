"""Read and write open-unlearning's evaluation logs of MUSE, `MUSE_EVAL.json` and `MUSE_SUMMARY.json`.

Its ROUGE-L F1 stems the words, which MUSE's own code does not, and its Min-K% leaves out the last label. MUSE's F1 is
computed from the texts in a file, but MUSE's Min-K% cannot be computed from a file. So a log has two sets of numbers:
MUSE's, and those that `numbers` returns under open-unlearning's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unlora.evals import metrics
from unlora.evals.log_format import KEPT
from unlora.evals.membership.scores import privacy_leakage
from unlora.evals.open_unlearning import (
    MUSE_METRICS,
    OWN,
    Entries,
    aggregates,
    entries_of,
    is_summary,
    kept_of,
    membership_entry,
    rows_of,
)

# Our set -> their metric.
ROUGE = {
    "verbmem": "forget_verbmem_ROUGE",
    "forget_qa": "forget_knowmem_ROUGE",
    "retain_qa": "retain_knowmem_ROUGE",
}
# Min-K% with their definition among our scores.
MIN_K = "min_k_40_without_last"
METRICS = MUSE_METRICS | {"mia_min_k", "privleak"}


def is_document(content: object) -> bool:
    """Return whether this is the content of a `MUSE_EVAL.json` or a `MUSE_SUMMARY.json`."""
    return isinstance(content, dict) and bool(content.keys() & MUSE_METRICS) and "scores" not in content


def from_document(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the content of a file to a log, with MUSE's scores where it has texts, and the file under `KEPT`."""
    entries, own = entries_of(content), content.get(OWN, {})
    texts = {name: found for name, metric in ROUGE.items() if (found := _texts(entries.get(metric, {})))}
    scores = {
        name: {"rougeL": [metrics.rouge_l_f1(said, right) for said, right in pairs]} for name, pairs in texts.items()
    }
    log = {"benchmark": "muse", "scores": scores, "texts": texts, **own.get("log", {})}
    return {**log, **kept_of(content)}


def to_document(log: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a log to the content of a `MUSE_EVAL.json`. A log read from such a file gives that file again."""
    kept: dict[str, Any] = log.get(KEPT, {})
    if is_summary(kept):
        kept = entries_of(kept)
    if kept.keys() & MUSE_METRICS:
        return dict(sorted(kept.items()))
    own = _entries(log)
    parts = {name: value for name, value in log.items() if name != KEPT and isinstance(value, dict)}
    rest = {"log": parts, "metrics": sorted(own)}
    return dict(sorted({**own, **kept, OWN: rest}.items()))


def numbers(log: Mapping[str, Any], retrained: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Return the numbers of a log with open-unlearning's names and definitions. F1 is a share, PrivLeak in percent."""
    found = {**aggregates(_entries(log)), **aggregates(entries_of(log.get(KEPT, {})))}
    theirs = None if retrained is None else numbers(retrained).get("mia_min_k")
    if theirs is not None and theirs < 1 and found.get("mia_min_k") is not None:
        found["privleak"] = privacy_leakage(found["mia_min_k"], theirs)
    return found


def _texts(entry: Mapping[str, Any]) -> list[list[str]]:
    """Return [generated text, right text] of each scored example, or [] if the entry lacks the texts."""
    rows = rows_of(entry)
    ordered = [rows[index] for index in sorted(rows, key=int) if rows[index] is not None]
    if not all({"generation", "ground_truth"} <= row.keys() for row in ordered):
        return []
    return [[str(row["generation"]), str(row["ground_truth"])] for row in ordered]


def _entries(log: Mapping[str, Any]) -> Entries:
    """Compute their metrics from one of our logs."""
    entries: Entries = {}
    for name, metric in ROUGE.items():
        if pairs := log.get("texts", {}).get(name):
            rows = [_rouge(*pair) for pair in pairs]
            entries[metric] = {
                "agg_value": float(np.mean([row["rougeL_f1"] for row in rows])),
                "value_by_index": {str(i): row for i, row in enumerate(rows)},
            }
    sets = [log.get("scores", {}).get(name, {}).get(MIN_K) for name in ("forget", "holdout")]
    if all(sets):
        forget, holdout = map(np.asarray, sets)
        entries["mia_min_k"] = membership_entry(forget, holdout)
    return entries


def _rouge(generated: str, reference: str) -> dict[str, Any]:
    recalls = metrics.rouge_recalls(generated, reference)
    return {
        "rouge1_recall": recalls["rouge1"],
        "rougeL_f1": metrics.rouge_l_f1(generated, reference, use_stemmer=True),
        "rougeL_recall": recalls["rougeL"],
        "generation": generated,
        "ground_truth": reference,
    }
