"""Read and write open-unlearning's evaluation logs of TOFU (https://github.com/locuslab/open-unlearning).

`TOFU_EVAL.json` is {metric: {"agg_value": number, "value_by_index": {index: {name: value}}}}, `TOFU_SUMMARY.json` is
{metric: number}. Such a file is converted to a log in TOFU's format that also contains the file itself, so that the
published numbers are reported, and the file can be written again unchanged. In the other direction, values of a log
that open-unlearning's format lacks are written to one more entry of the file, "unlora". So nothing is lost either way.

In this module, "theirs" means open-unlearning's, and "ours" unlora's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from unlora.evals import metrics
from unlora.evals.log_format import FILES, GENERAL_SETS, KEPT, TASKS, Log, is_number
from unlora.evals.membership.readings import example_scores
from unlora.evals.membership.scores import privacy_leakage, score_auc
from unlora.evals.summary import both_truth_ratios, example_values, geometric_ratios

# {metric: {"agg_value": ..., "value_by_index": ...}}
Entries = dict[str, dict[str, Any]]
# The entry of a file with the values of a log that their format lacks.
OWN = "unlora"
# Their k of Min-K% and Min-K%++.
PERCENT = 40

_PREFIXES = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
_TRUTH_RATIOS = {
    "forget": "forget_truth_ratio",
    "retain": "retain_Truth_Ratio",
    "real_authors": "ra_Truth_Ratio",
    "world_facts": "wf_Truth_Ratio",
}
# Their nine terms of model utility, with the geometric truth ratio.
_UTILITY = (
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
# Their metric -> ours.
MEMORISATION = {"exact_memorization": "exact_memorisation", "extraction_strength": "extraction_strength"}
MEMBERSHIP = {
    "mia_loss": "loss",
    "mia_zlib": "zlib",
    "mia_min_k": "min_k",
    "mia_min_k_plus_plus": "min_k_plus_plus",
}
# The forget set's truth ratio as true / (true + false), which the leaderboard uses.
PROB_MEAN = "forget_truth_ratio_prob_mean"
# In spite of its name, the probability that a generated answer is not gibberish.
FLUENCY = "forget_Q_A_gibberish"
_KINDS = ("Prob", "PARA_Prob", "PERT_Prob", "ROUGE", "PARA_ROUGE", "PERT_ROUGE", "Prob_normalised")
METRICS = frozenset(
    [
        *(f"{prefix}_Q_A_{kind}" for prefix in _PREFIXES.values() for kind in _KINDS),
        *(*_TRUTH_RATIOS.values(), "forget_Truth_Ratio", "model_utility", "forget_quality", "privleak"),
        *(*MEMORISATION, *MEMBERSHIP, "mia_gradnorm", "mia_reference", FLUENCY, PROB_MEAN),
    ]
)

# Metrics that only files of MUSE have.
MUSE_METRICS = frozenset(("forget_verbmem_ROUGE", "forget_knowmem_ROUGE", "retain_knowmem_ROUGE"))


def is_document(content: object) -> bool:
    """Return whether this is the content of a `TOFU_EVAL.json` or a `TOFU_SUMMARY.json`."""
    return isinstance(content, dict) and bool(content.keys() & METRICS) and not content.keys() & MUSE_METRICS


def document_errors(content: Mapping[str, Any], known: frozenset[str] = METRICS) -> Iterator[str]:
    """Yield the reasons why the content is not valid. Only the metrics in `known` are checked."""
    for metric in sorted(known & content.keys()):
        entry = content[metric]
        if is_number(entry) or entry is None:
            continue
        if not isinstance(entry, dict):
            yield f"{metric} is neither a number nor {{agg_value, value_by_index}}"
            continue
        if not (entry.get("agg_value") is None or is_number(entry["agg_value"])):
            yield f"agg_value of {metric} is not a number"
        for part in (entry, entry.get("forget", {}), entry.get("holdout", {})):
            rows = rows_of(part) if isinstance(part, dict) else None
            if not isinstance(rows, dict) or not all(row is None or isinstance(row, dict) for row in rows.values()):
                yield f"value_by_index of {metric} is not {{index: {{name: value}}}}"
            elif not all(index.isdecimal() for index in rows):
                yield f"the examples of {metric} are not numbered"
    own = content.get(OWN, {})
    log: Any = own.get("log", {}) if isinstance(own, dict) else None
    if not _all_dicts(log) or (known is METRICS and not all(map(_all_dicts, log.values()))):
        yield f"its entry {OWN!r} was not written by unlora"


def rows_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of single examples of a metric, {index: {name: value}}; empty if there are none."""
    rows = entry.get("value_by_index")
    return {} if rows is None else rows


def entries_of(content: Mapping[str, Any]) -> Entries:
    """Return the metrics of an EVAL or SUMMARY file in the form of an EVAL file."""
    theirs = {metric: value for metric, value in content.items() if metric != OWN}
    return {metric: value if isinstance(value, dict) else {"agg_value": value} for metric, value in theirs.items()}


def aggregates(entries: Entries) -> dict[str, float]:
    """Return the aggregated values of metrics, without null and NaN, which stand for values that were not computed."""
    known = {
        metric: float(entry["agg_value"]) for metric, entry in entries.items() if is_number(entry.get("agg_value"))
    }
    return {metric: value for metric, value in known.items() if math.isfinite(value)}


def is_summary(content: Mapping[str, Any]) -> bool:
    """Return whether this is the content of a SUMMARY file, in which no metric has values of single examples."""
    return not any(
        isinstance(value, dict) and value.keys() & {"agg_value", "value_by_index"} for value in content.values()
    )


def from_document(content: Mapping[str, Any]) -> Log:
    """Convert the content of a file to a log, with the file itself under `KEPT`.

    Examples that could not be scored, whose values are None, are left out of all columns of their set.
    """
    entries, own = entries_of(content), content.get(OWN, {})
    log: Log = _tasks(entries)
    for task, columns in own.get("log", {}).items():
        log.setdefault(task, {}).update(columns)
    return {**log, **kept_of(content)}


def kept_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return {KEPT: the metrics of a file that open-unlearning computed}, or {} if there are none."""
    ours = {OWN, *content.get(OWN, {}).get("metrics", ())}
    kept = {metric: entry for metric, entry in content.items() if metric not in ours}
    return {KEPT: kept} if kept else {}


def summary_of(kept: Mapping[str, Any], found: Mapping[str, float]) -> dict[str, Any]:
    """Return the content of a SUMMARY file: the file `kept` if it is one, and otherwise the numbers in `found`."""
    return dict(kept) if kept and is_summary(kept) else dict(found)


def to_document(log: Log) -> dict[str, Any]:
    """Convert a log to the content of a `TOFU_EVAL.json`. A log read from such a file gives that file again."""
    kept: dict[str, Any] = log.get(KEPT, {})
    if is_summary(kept):
        kept = entries_of(kept)
    tasks = {task: columns for task, columns in log.items() if task != KEPT}
    own = {} if tasks.keys() <= _tasks(entries_of(kept)).keys() else computed_entries(log)
    entries = {**own, **kept}
    theirs = _tasks(entries_of(entries))
    rest = {
        task: {name: column for name, column in columns.items() if theirs.get(task, {}).get(name) != column}
        for task, columns in tasks.items()
    }
    rest = {task: columns for task, columns in rest.items() if columns}
    extra: dict[str, Any] = {"log": rest} if rest else {}
    if own:
        extra["metrics"] = sorted(own.keys() - kept.keys())
    return dict(sorted({**entries, **({OWN: extra} if extra else {})}.items()))


def numbers(log: Log, retrained: Log | None = None) -> dict[str, float]:
    """Return the numbers of a log with open-unlearning's names and definitions, as in its SUMMARY files.

    If the log was read from one of their files, the file's numbers are returned, and those that can be computed from
    its examples in addition.

    Args:
        log: log of the model.
        retrained: log of the retrained model, for forget quality and PrivLeak.
    """
    found = {**aggregates(computed_entries(log)), **aggregates(entries_of(log.get(KEPT, {})))}
    if retrained is not None:
        if TASKS["forget"] in log and TASKS["forget"] in retrained and (ratios := both_truth_ratios(log, retrained)):
            found["forget_quality"] = metrics.forget_quality(*ratios)
        own, theirs = found.get("mia_min_k"), numbers(retrained).get("mia_min_k")
        if own is not None and theirs is not None and theirs < 1:
            found["privleak"] = privacy_leakage(own, theirs)
    return found


def computed_entries(log: Log) -> Entries:
    """Compute open-unlearning's metrics from a log in TOFU's format. Metrics that need missing values are left out."""
    entries: Entries = {}
    for name in _PREFIXES:
        if log.get(TASKS[name]):
            entries |= _set_entries(name, log[TASKS[name]])
    entries |= _token_entries(log)
    if all(metric in entries for metric in _UTILITY):
        terms = [float(entries[metric]["agg_value"]) for metric in _UTILITY]
        entries["model_utility"] = {"agg_value": metrics.model_utility(terms)}
    return entries


# From their format to ours


def _tasks(entries: Entries) -> Log:
    return {TASKS[name]: columns for name in TASKS if (columns := _columns(name, entries))}


def _columns(name: str, entries: Entries) -> dict[str, dict[str, Any]]:
    """Return the columns of a set in TOFU's format that the entries give."""
    metric = f"{_PREFIXES[name]}_Q_A_{{}}"
    general = name in GENERAL_SETS  # in these sets the answer itself serves as its paraphrase
    found = {
        "avg_gt_loss": _field(entries, metric.format("Prob"), "avg_loss"),
        "avg_paraphrased_loss": _field(entries, metric.format("Prob" if general else "PARA_Prob"), "avg_loss"),
        "average_perturb_loss": _field(entries, metric.format("PERT_Prob"), "avg_loss"),
        "rouge1_recall": _field(entries, metric.format("ROUGE"), "rouge1_recall"),
        "rougeL_recall": _field(entries, metric.format("ROUGE"), "rougeL_recall"),
        "generated_text": _texts(entries.get(metric.format("ROUGE"), {})),
    }
    if not found["average_perturb_loss"]:
        found["truth_ratio"] = _ratios(entries, name)
        if general:
            del found["avg_paraphrased_loss"]
    scored = {column: values for column, values in found.items() if values}
    missing = {index for values in scored.values() for index, value in values.items() if value is None}
    if "average_perturb_loss" in scored:  # a single wrong answer is a number there
        wrong = scored["average_perturb_loss"]
        scored["average_perturb_loss"] = {i: v if isinstance(v, list) else [v] for i, v in wrong.items()}
    if "avg_paraphrased_loss" in scored:  # several paraphrases are averaged
        other = scored["avg_paraphrased_loss"]
        scored["avg_paraphrased_loss"] = {i: float(np.mean(v)) if isinstance(v, list) else v for i, v in other.items()}
    return {
        column: {index: value for index, value in values.items() if index not in missing}
        for column, values in scored.items()
    }


def _field(entries: Entries, metric: str, field: str) -> dict[str, Any]:
    rows = rows_of(entries.get(metric, {}))
    values = {index: None if row is None else row.get(field) for index, row in rows.items()}
    return values if any(value is not None for value in values.values()) else {}


def _texts(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return prompt, answer and reference of each example, if the entry has them."""
    parts = ("input", "generation", "ground_truth")
    rows = rows_of(entry)
    if not all(all(part in row for part in parts) for row in rows.values() if row is not None):
        return {}
    return {index: None if row is None else [row[part] for part in parts] for index, row in rows.items()}


def _ratios(entries: Entries, name: str) -> dict[str, Any]:
    """Return the geometric truth ratios of a set, false / true, if its losses are not in the file."""
    names = [_TRUTH_RATIOS[name], *(["forget_Truth_Ratio"] if name == "forget" else [])]
    return next((scores for metric in names if (scores := _field(entries, metric, "score"))), {})


# From our format to theirs


def _set_entries(name: str, columns: Mapping[str, Mapping[str, Any]]) -> Entries:
    found: Entries = {}
    metric = f"{_PREFIXES[name]}_Q_A_{{}}"
    sources = {"Prob": "avg_gt_loss", "PARA_Prob": "avg_paraphrased_loss", "PERT_Prob": "average_perturb_loss"}
    if name in GENERAL_SETS:
        del sources["PARA_Prob"]
    for kind, column in sources.items():
        if column in columns:
            found[metric.format(kind)] = _probabilities(columns[column])
    if "rougeL_recall" in columns:
        found[metric.format("ROUGE")] = _rouge(columns)
    values = example_values(name, columns)
    if name in GENERAL_SETS and "probability" in values:
        indices = sorted(columns["avg_gt_loss"], key=int)
        by_index = {i: {"prob": float(v)} for i, v in zip(indices, values["probability"], strict=True)}
        found[metric.format("Prob_normalised")] = _entry(values["probability"].mean(), by_index)
    if "truth_ratio_geometric" in values:
        examples = columns.get("avg_paraphrased_loss", columns.get("truth_ratio", {}))
        ratios = geometric_ratios(columns)
        by_index = {i: {"score": float(v)} for i, v in zip(sorted(examples, key=int), ratios, strict=True)}
        found[_TRUTH_RATIOS[name]] = _entry(values["truth_ratio_geometric"].mean(), by_index)
        if name == "forget":
            found[PROB_MEAN] = {"agg_value": float((1 / (1 + ratios)).mean())}
    return found


def _entry(aggregated: float, by_index: dict[str, Any]) -> dict[str, Any]:
    return {"agg_value": float(aggregated), "value_by_index": by_index}


def _probabilities(losses: Mapping[str, Any]) -> dict[str, Any]:
    rows = {i: {"prob": np.exp(-np.asarray(loss)).tolist(), "avg_loss": loss} for i, loss in losses.items()}
    return _entry(float(np.mean([np.mean(row["prob"]) for row in rows.values()])), rows)


def _rouge(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    texts, recall = columns.get("generated_text", {}), columns["rougeL_recall"]
    rows: dict[str, Any] = {}
    for index, value in recall.items():
        rows[index] = {"rougeL_recall": value}
        if "rouge1_recall" in columns:
            rows[index]["rouge1_recall"] = columns["rouge1_recall"][index]
        if index in texts:
            rows[index] |= dict(zip(("input", "generation", "ground_truth"), texts[index], strict=True))
    return _entry(float(np.mean(list(recall.values()))), rows)


def _token_entries(log: Log) -> Entries:
    """Return memorisation, and membership if the log has a holdout set, with open-unlearning's definitions."""
    sets = {
        name: example_scores(log.get(FILES[name], {}), "open-unlearning", PERCENT) for name in ("forget", "holdout")
    }
    found: Entries = {}
    for theirs, ours in MEMORISATION.items():
        if ours in sets["forget"] and not np.isnan(sets["forget"][ours]).all():
            values = sets["forget"][ours]
            by_index = {str(i): {"score": None if math.isnan(v) else float(v)} for i, v in enumerate(values)}
            found[theirs] = _entry(float(np.nanmean(values)), by_index)
    for theirs, ours in MEMBERSHIP.items():
        if all(len(part.get(ours, ())) > 1 for part in sets.values()):
            found[theirs] = membership_entry(sets["forget"][ours], sets["holdout"][ours])
    return found


def membership_entry(forget: metrics.Values, holdout: metrics.Values) -> dict[str, Any]:
    """Return the entry of a membership attack from its scores of both sets."""
    auc = score_auc(forget, holdout).value
    return {"forget": _losses(forget), "holdout": _losses(holdout), "auc": auc, "agg_value": auc}


def _losses(scores: metrics.Values) -> dict[str, Any]:
    """Return the entry of a set's membership scores. Theirs are losses: the lower, the more likely a member."""
    return _entry(-scores.mean(), {str(i): {"score": -float(score)} for i, score in enumerate(scores)})


def _all_dicts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(part, dict) for part in value.values())
