"""MUSE (Shi et al. 2025, https://arxiv.org/abs/2407.06460): its six criteria.

C1 verbatim memorisation, C2 knowledge memorisation, C3 privacy leakage and C4 utility are the four numbers of one
model. C5 and C6 are the same numbers after requests of growing size (splits scal_1 to scal_4) and after four requests
in sequence (sust_1 to sust_4). Prompts, maximum lengths and truncation are those of MUSE's released code. Scores are
{set: {score: one number per example}} as in `evals/membership/leakage.py`, so that two models can be compared later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlora.benchmarks.interface import (
    ALL,
    Benchmark,
    Log,
    Measured,
    Metric,
    Options,
    Reading,
    needed,
    read_json,
    unknown_splits,
    with_set,
)
from unlora.benchmarks.muse_scoring import NEW_TOKENS, Sets, evaluate_muse, load_muse, text_count
from unlora.common.errors import NOT_AVAILABLE, InputError, Problem
from unlora.common.files import write_text
from unlora.common.progress import shown
from unlora.common.reading import check_finite
from unlora.evals.membership.leakage import (
    Scores,
    check_retrained,
    is_scores,
    read_scores,
    summarise_leakage,
)
from unlora.evals.metrics import finite_values
from unlora.evals.open_unlearning import KEPT, document_errors, summary_of
from unlora.evals.open_unlearning_muse import METRICS, from_document, is_document, numbers, to_document
from unlora.models.hashes import sets_sha256
from unlora.settings import BenchmarkSettings
from unlora.settings.evaluation import EVAL, SUMMARY, summary_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlora.data import TextFormat
    from unlora.data.sources import Record


FOLDS = ("forget_1", "forget_2", "forget_3", "forget_4")
# Split -> configuration and split of the forget set. C5's requests are independent, C6's continue each other.
REQUESTS = {
    "forget": ("raw", "forget"),
    **{f"scal_{number}": ("scal", fold) for number, fold in enumerate(FOLDS, 1)},
    **{f"sust_{number}": ("sust", fold) for number, fold in enumerate(FOLDS, 1)},
}
# Metric -> the set whose mean ROUGE-L F1 it is.
ROUGE_METRICS = {"verbmem_f": "verbmem", "knowmem_f": "forget_qa", "knowmem_r": "retain_qa"}
# MUSE reports Min-40%. The other attack is for comparison.
PRIVLEAK_ATTACKS = ("min_k_40", "min_k_20")
PRIVLEAK_NEEDS = "it compares with a model trained without the forget set; give that model or its log with --retrained"


class Muse(Benchmark):
    """MUSE-News or MUSE-Books, or a folder with the same configurations."""

    name = "muse"
    title = "MUSE"
    paper = "Shi et al. 2025, arXiv 2407.06460"
    needs = "data (muse-bench/MUSE-News or -Books), the model that was trained on it; a retrained model for privleak"
    splits = tuple(REQUESTS)
    after = {f"sust_{number}": f"sust_{number - 1}" for number in range(2, len(FOLDS) + 1)}  # noqa: RUF012
    metrics = {  # noqa: RUF012
        "verbmem_f": Metric("verbatim memorisation of the forget set (verbmem_f)", "low", limits=(0, 100)),
        "knowmem_f": Metric("knowledge of the forget set (knowmem_f)", "low", limits=(0, 100)),
        "privleak": Metric("privacy leakage (privleak)", "zero", PRIVLEAK_NEEDS),
        "knowmem_r": Metric("knowledge of the retain set (knowmem_r)", "high", limits=(0, 100)),
    }
    plane = ("knowmem_r", "knowmem_f")
    takes_text_settings = False

    def problems(self, options: Options) -> list[Problem]:
        """Return a problem for each missing option. One retrained model may be used for all splits."""
        problems = needed(options, "name the model trained on the forget set", "name a folder, or muse-bench/MUSE-News")
        return problems + unknown_splits(options, (ALL, *REQUESTS))

    def request(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the request: text in chunks of MUSE's length, with the first retain part as the retain set."""
        config, forget = REQUESTS[split]
        return {
            "model_name_or_path": options.model,
            "max_length": 2048,
            "forget_data": options.data,
            "forget_name": config,
            "forget_split": forget,
            "retain_data": options.data,
            "retain_name": "raw",
            "retain_split": "retain1",
            "seed": seed,
            "importance_seed": seed,
        }

    def load(self, settings: BenchmarkSettings) -> dict[str, list[Record]]:
        """Return the sets that C1 to C4 need."""
        return load_muse(settings.data, settings.ds_size)

    def rows(self, data: Sets) -> Iterable[Record]:
        """Return the rows of all sets, each with the name of its set."""
        return with_set(data)

    def score(self, model: PreTrainedModel, text_format: TextFormat, data: Sets, settings: BenchmarkSettings) -> Log:
        """Return scores and generated texts. MUSE uses no chat template, whatever the text format says."""
        with shown("evaluation on MUSE", " texts", text_count(data)) as progress:
            scores, texts = evaluate_muse(model, data, text_format.tokenizer, settings.eval_batch_size, progress)
        return {"rows": sets_sha256(data), "scores": scores, "texts": texts}

    def owns(self, log: Mapping[str, Any]) -> bool:
        """Return whether the log has scores. Older logs do not name their benchmark."""
        return "scores" in log or is_document(log)

    def read_log(self, path: str | Path, argument: str = "log") -> Log:
        """Read a log whose scores are complete, or a `MUSE_EVAL.json` or `MUSE_SUMMARY.json` of open-unlearning."""
        log = read_json(path, argument)
        if not is_document(log):
            _check_sets(read_scores(path, argument), path, argument)
            return log
        for reason in document_errors(log, METRICS):
            raise InputError(Problem(argument, str(path), reason, "give a MUSE_EVAL.json of open-unlearning"))
        found = from_document(log)
        if "forget" in found["scores"] and not is_scores(found["scores"]):
            reason = "its scores are not one number per example"
            raise InputError(Problem(argument, str(path), reason, "give a MUSE_EVAL.json as it was written"))
        return found

    def read_retrained(self, path: str, data: Sets, settings: BenchmarkSettings) -> Log:
        """Read the retrained model's log, which must be of the same rows."""
        log = self.read_log(path, "retrained")
        if KEPT not in log:
            read_muse_scores(path, data)
        return log

    def read(self, log: Log, retrained: Log | None = None) -> Reading:
        """Return C1 to C4 in percent, and the areas under the ROC curve from which privacy leakage is computed."""
        summary, scores = self.summary(log, retrained), log["scores"]
        values: dict[str, Measured | None] = {
            name: _percent(scores[part]["rougeL"]) if part in scores else None for name, part in ROUGE_METRICS.items()
        }
        values["privleak"] = _leakage(log, summary, retrained) if summary["membership"] else None
        theirs = {name: Measured(value) for name, value in summary["open_unlearning"].items()}
        return Reading(
            values={name: values[name] for name in self.metrics},
            examples=summary["examples"],
            derived=theirs,
            areas={name: Measured(row["auc"], row["standard_error"]) for name, row in summary["membership"].items()},
        )

    def write_log(self, path: str | Path, log: Log, summary: dict[str, Any]) -> None:
        """Write the log, in open-unlearning's format if the file's name ends in `_EVAL.json` or `_SUMMARY.json`."""
        name, kept = str(path), log.get(KEPT, {})
        whole = {"benchmark": self.name, "metrics": summary, **log}
        if not name.endswith((EVAL, SUMMARY)):
            check_finite({part: value for part, value in whole.items() if part != KEPT})
            write_text(path, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
            return
        if name.endswith(EVAL):
            write_text(path, json.dumps(to_document(whole), indent=4))
        write_text(summary_file(name) or name, json.dumps(summary_of(kept, summary["open_unlearning"]), indent=4))

    def summary(self, log: Log, retrained: Log | None = None) -> dict[str, Any]:
        """Return the metrics with both attacks of the privacy leakage (see `summarise_muse`), and open-unlearning's."""
        known = None if retrained is None or "forget" not in retrained["scores"] else retrained["scores"]
        return {**summarise_muse(log["scores"], known), "open_unlearning": numbers(log, retrained)}


def _percent(values: Sequence[float]) -> Measured:
    """Return the mean of shares in percent, with its standard error."""
    array = 100 * np.asarray(values, dtype=np.float64)
    return Measured(float(array.mean()), float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else 0.0)


def _leakage(log: Log, summary: Mapping[str, Any], retrained: Log | None) -> Measured | None:
    """Return the privacy leakage. Without the retrained model's log, return the value in the log's metrics, if any."""
    if retrained is None or "forget" not in retrained["scores"]:
        known = log.get("metrics", {}).get("privleak")
        return Measured(float(known)) if isinstance(known, int | float) else None
    if summary["privleak"] == NOT_AVAILABLE:  # the retrained model tells the sets apart perfectly
        return None
    attack = PRIVLEAK_ATTACKS[0]
    theirs = summarise_muse(retrained["scores"])["membership"][attack]["auc"]
    # The retrained model's area is taken as exact: the leakage is (A − A_r) / A_r with A = 1 − auc.
    error = 100 * summary["membership"][attack]["standard_error"] / (1 - theirs)
    return Measured(summary["privleak"], error)


def summarise_muse(scores: Scores, retrained: Scores | None = None) -> dict[str, Any]:
    """Return the metrics of scores as plain JSON values.

    Args:
        scores: scores of the model to evaluate.
        retrained: scores of a model trained without the forget set, on the same sets.

    Returns:
        By name:

        - `verbmem_f` (C1), `knowmem_f` (C2), `knowmem_r` (C4): mean ROUGE-L F1 times 100.
        - `privleak` (C3): in percent, with Min-40%; "not available" without `retrained`, or if the retrained model
          tells the sets apart perfectly, which may happen if they have few rows.
        - `membership`: by attack (Min-40%, Min-20%), auc, standard_error and privleak.
        - `examples`: the number of examples of each set.

    Raises:
        InputError: as `summarise_leakage`.
    """
    attacks: dict[str, Any] = {}
    if "forget" in scores:
        leakage = summarise_leakage(scores, retrained)["membership"]
        attacks = {name: leakage[name] for name in PRIVLEAK_ATTACKS}
    for attack in attacks.values():
        if attack["privleak"] is None:
            attack["privleak"] = NOT_AVAILABLE
    known = {metric: name for metric, name in ROUGE_METRICS.items() if name in scores}
    rouge = {metric: finite_values(name, scores[name]["rougeL"]) for metric, name in known.items()}
    means = {metric: 100 * float(values.mean()) for metric, values in rouge.items()}
    return {
        **{metric: means.get(metric, NOT_AVAILABLE) for metric in ROUGE_METRICS},
        "privleak": attacks[PRIVLEAK_ATTACKS[0]]["privleak"] if attacks else NOT_AVAILABLE,
        "membership": attacks,
        "examples": {name: len(next(iter(columns.values()))) for name, columns in scores.items()},
    }


def read_muse_scores(path: str | Path, sets: Sets, argument: str = "retrained") -> Scores:
    """Read the retrained model's scores from a log of `unlora evaluate --benchmark muse` on the same sets.

    Raises:
        InputError: the file is not such a log, or is a log of other rows.
    """
    scores = read_scores(path, argument, sets)
    _check_sets(scores, path, argument)
    check_retrained(scores, {name: len(sets[name]) for name in ("forget", "holdout")})
    return scores


def _check_sets(scores: Scores, path: str | Path, argument: str) -> None:
    if not scores.keys() >= set(NEW_TOKENS):
        reason, fix = "it has no scores of MUSE's sets", "give a log of `unlora evaluate --benchmark muse`"
        raise InputError(Problem(argument, str(path), reason, fix))


MUSE = Muse()
