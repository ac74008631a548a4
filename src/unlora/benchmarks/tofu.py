"""TOFU (Maini et al. 2024, https://arxiv.org/abs/2401.06121), and other sets of questions in TOFU's schema."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlora.benchmarks.interface import (
    ALL,
    Benchmark,
    Log,
    Measured,
    Metric,
    Options,
    Reading,
    needed,
    unknown_splits,
    with_set,
)
from unlora.common.errors import InputError, Problem
from unlora.common.progress import shown
from unlora.evals.log_format import BENCHMARK_SETS, TASKS
from unlora.evals.logs import read_log, write_log
from unlora.evals.open_unlearning import KEPT, is_document, numbers
from unlora.evals.questions import read_questions
from unlora.evals.ranking import WHOLE_ANSWERS, ranking
from unlora.evals.same_examples import ForgetExamples, check_same_examples
from unlora.evals.summary import forget_truth_ratios, summarise
from unlora.evals.tofu import configured_sets, evaluate, text_count
from unlora.settings import OwnSetsSettings, TofuSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlora.data import TextFormat
    from unlora.data.sources import Record

SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
# Column -> set and metric in a model's summary, and open-unlearning's name for it.
SET_COLUMNS = {
    "forget probability": ("forget", "probability", "forget_Q_A_Prob"),
    "forget ROUGE-L recall": ("forget", "rougeL_recall", "forget_Q_A_ROUGE"),
    "retain probability": ("retain", "probability", "retain_Q_A_Prob"),
}
QUALITY_NEEDS = (
    "it compares with a model trained without the forget set; give that model or its log for each split with "
    "--retrained, such as forget10=retain90.json"
)
RANKING_NEEDS = {
    "overall": "it needs the other three",
    "memorisation": "it needs the tokens of the forget answers, and paraphrased and perturbed answers",
    "privacy": "it compares membership inference with the retrained model's: it needs that model, and logs with rows "
    "that no model was trained on (--eval_holdout_name)",
    "utility": "it is relative to the original model: it needs all terms of model utility and a measure of fluency",
}

# Column -> names of a count of the forget set's answers, and of the total from which they are counted.
_COUNTS = {"facts revealed": ("given_away", "facts"), "broken answers": ("broken", "answers")}


def _counted(forget: Mapping[str, Any]) -> dict[str, Measured]:
    """Return the counts of answers that are in the summary of a forget set."""
    return {
        column: Measured(forget[count], of=forget[possible])
        for column, (count, possible) in _COUNTS.items()
        if forget.get(possible)
    }


class TofuSchema(Benchmark):
    """Sets in TOFU's schema. `unlora unlearn` evaluates them itself, and logs have TOFU's format.

    Attributes:
        sets: the sets of a complete log. If one is missing, there is no model utility. Empty for the user's own sets.
    """

    name = "own sets"
    title = "TOFU"
    sets: Sequence[str] = ()
    # The other numbers have no direction: the best value is the retrained model's, which may be unknown.
    metrics = {  # noqa: RUF012
        "log10 forget quality": Metric("log₁₀ forget quality", "high", QUALITY_NEEDS),
        "model utility": Metric("model utility", "high"),
        "model utility, geometric": Metric("model utility with the geometric truth ratio", "high"),
        **{name: Metric(name, "high", needs) for name, needs in RANKING_NEEDS.items()},
    }
    plane = ("model utility", "log10 forget quality")
    settings = TofuSettings
    evaluated_by_unlearn = True

    def load(self, settings: TofuSettings) -> dict[str, list[Record]]:
        """Return the sets of `eval_data`."""
        if not settings.eval_data:
            raise InputError(Problem("eval_data", settings.eval_data, "it is required", "name a folder or a dataset"))
        return configured_sets(settings)

    def rows(self, data: Mapping[str, Sequence[Record]]) -> Iterable[Record]:
        """Return the rows of all sets, each with the name of its set."""
        return with_set(data)

    def score(
        self,
        model: PreTrainedModel,
        text_format: TextFormat,
        data: Mapping[str, Sequence[Record]],
        settings: TofuSettings,
    ) -> Log:
        """Return a log in TOFU's format."""
        with shown("evaluation", " texts", text_count(data, settings)) as progress:
            return evaluate(model, data, text_format, settings, progress)

    def owns(self, log: Mapping[str, Any]) -> bool:
        """Return whether the log has one of TOFU's tasks."""
        return (bool(log.keys() & {*TASKS.values(), KEPT}) or is_document(log)) and "scores" not in log

    def read_log(self, path: str | Path, argument: str = "log") -> Log:
        """Read a log in TOFU's format."""
        return read_log(path, argument)

    def read_retrained(self, path: str, data: Mapping[str, Sequence[Record]], settings: TofuSettings) -> Log:
        """Read the retrained model's log, which must be of the same forget set."""
        log = read_log(path, "retrained")
        check_comparable(data, log, settings.ds_size)
        return log

    def read(self, log: Log, retrained: Log | None = None) -> Reading:
        """Return forget quality, model utility, and probability and recall of the forget and the retain set."""
        summary = self.summary(log, retrained)
        sets, theirs = summary["sets"], summary["open_unlearning"]
        values = {
            "log10 forget quality": summary["log10_forget_quality"],
            "model utility": summary["model_utility"],
            "model utility, geometric": summary["model_utility_geometric"],
            **{column: sets.get(name, {}).get(metric) for column, (name, metric, _) in SET_COLUMNS.items()},
        }
        if not sets:  # a file with aggregated values alone
            values |= {column: theirs.get(metric) for column, (*_, metric) in SET_COLUMNS.items()}
        measured = {name: None if value is None else Measured(value) for name, value in values.items()}
        return Reading(
            values={**measured, **_counted(sets.get("forget", {}))},
            examples={name: len(next(iter(log[TASKS[name]].values()))) for name in sets},
        )

    def summary(self, log: Log, retrained: Log | None = None) -> dict[str, Any]:
        """Return the metrics of all sets (see `evals.summary.summarise`), and those that open-unlearning defines.

        With a retrained model, "retrained" has the metrics of its sets. If the log is a file of open-unlearning that
        only has aggregated values, its own forget quality and model utility are returned.
        """
        known = retrained if retrained is not None and TASKS["forget"] in retrained and log.keys() - {KEPT} else None
        theirs = numbers(log, retrained)
        summary = summarise(log, known, self.sets)
        if not summary["sets"]:
            quality = theirs.get("forget_quality")
            summary["model_utility_geometric"] = theirs.get("model_utility")
            summary["forget_quality"] = quality
            summary["log10_forget_quality"] = math.log10(quality) if quality else None
        others = {} if known is None else {"retrained": summarise(known)["sets"]}
        return {**summary, **others, "open_unlearning": theirs}

    def ranking(self, log: Path, original: Path | None, retrained: Path | None) -> dict[str, float | None]:
        """Return the numbers of open-unlearning's ranking (`unlora.evals.ranking`)."""
        own, *others = (None if path is None else self._numbers(path) for path in (log, original, retrained))
        assert own is not None
        return ranking(own, *others)

    def _numbers(self, path: Path) -> dict[str, float]:
        """Return open-unlearning's numbers of a log, and the share of answers that are not broken if it is known."""
        log = self.read_log(path)
        forget = summarise(log)["sets"].get("forget", {})
        whole = {WHOLE_ANSWERS: 1 - forget["broken"] / forget["answers"]} if "broken" in forget else {}
        return {**numbers(log), **whole}

    def write_log(self, path: str | Path, log: Log, summary: dict[str, Any]) -> None:
        """Write the log without the summary, in TOFU's format."""
        write_log(log, path)


class OwnSets(TofuSchema):
    """The user's own sets, which may lack columns of TOFU's schema."""

    settings = OwnSetsSettings

    def load(self, settings: TofuSettings) -> dict[str, list[Record]]:
        """Return the sets of `eval_data`, or those that `forget_data` and `retain_data` name."""
        from unlora.data import load_set

        assert isinstance(settings, OwnSetsSettings)
        if settings.eval_data:
            return super().load(settings)
        return {name: load_set(settings, name) for name in ("forget", "retain") if getattr(settings, f"{name}_data")}


class Tofu(TofuSchema):
    """TOFU's fictitious authors."""

    name = "tofu"
    paper = "Maini et al. 2024, arXiv 2401.06121"
    needs = "data (locuslab/TOFU), the model fine-tuned on it; a retrained model for each split for forget quality"
    splits = tuple(SPLITS)
    sets = BENCHMARK_SETS["tofu"]

    def problems(self, options: Options) -> list[Problem]:
        """Return a problem for each missing option. Each split needs its own retrained model."""
        problems = needed(options, "name the model fine-tuned on TOFU", "name a folder, or locuslab/TOFU")
        if ALL in options.retrained:
            reason, fix = "each split has a retrained model of its own", "write it as forget10=log.json"
            problems.append(Problem("retrained", options.retrained[ALL], reason, fix))
        return problems + unknown_splits(options, (*SPLITS, ALL))

    def request(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the request: the split, evaluated with its perturbed sets."""
        return {
            "model_name_or_path": options.model,
            "forget_data": options.data,
            "forget_name": split,
            "retain_data": options.data,
            "retain_name": SPLITS[split],
            "eval_data": options.data,
            "eval_forget_name": f"{split}_perturbed",
            "eval_holdout_name": _holdout(options.data, split),
            "seed": seed,
            "importance_seed": seed,
        }


def _holdout(data: str | None, split: str) -> str:
    """Return the holdout configuration of a split. Folders of TOFU's data may lack it; the one on the Hub has it."""
    name = split.replace("forget", "holdout")
    folder = Path(data or "")
    return name if not folder.is_dir() or any(folder.glob(f"{name}*")) else "none"


def check_comparable(sets: Mapping[str, Sequence[Record]], retrained_log: Log, ds_size: int | None) -> None:
    """Raise `InputError` if an evaluation on `sets` could not be compared with the retrained model's log.

    This is checked before the evaluation, which takes long. Forget rows without wrong answers have no forget quality,
    but their right answers are still compared.
    """
    summarise(retrained_log, retrained_log)
    questions = read_questions("forget", sets.get("forget", ()), ds_size)
    if not questions:
        reason, fix = "no forget rows are evaluated that could be compared with it", "remove retrained"
        raise InputError(Problem("retrained", "a log", reason, fix))
    if questions[0].perturbed:
        forget_truth_ratios("retrained", retrained_log)
    answers = dict(enumerate(row.answer for row in questions))
    wrong = dict(enumerate(len(row.perturbed) for row in questions))
    check_same_examples(ForgetExamples(len(questions), answers, wrong), retrained_log)


TOFU = Tofu()
# What `unlora evaluate` measures if no benchmark is named.
OWN_SETS = OwnSets()
