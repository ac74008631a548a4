"""TOFU's evaluation (Maini et al. 2024, https://arxiv.org/abs/2401.06121), in the format of its own published logs.

A log is {task file: {metric: {index: value}}}. It holds per-example numbers only; `summarise` makes the metrics of
them, so that a log that TOFU's own code wrote and one written here are read alike. The same code evaluates any
benchmark whose sets have TOFU's columns, with as many of the sets as there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.common.files import write_text
from unlora.evals import metrics
from unlora.settings import EvalSettings, TofuSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from unlora.data import Example, TextFormat
    from unlora.data.sources import Record

Log = dict[str, dict[str, dict[str, Any]]]

TASKS = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
# The sets that a whole evaluation log of each benchmark has.
BENCHMARK_SETS = {
    "tofu": ("retain", "real_authors", "world_facts", "forget"),
    "persona": ("retain", "world_facts", "forget"),
}
# Sets the model was never fine-tuned on: their probability is normalised over right and wrong answers.
GENERAL_SETS = ("real_authors", "world_facts")
SCALARS = ("avg_gt_loss", "rougeL_recall", "avg_paraphrased_loss")
LEAST_LOSS = -1e-6  # rounding may leave a loss of 0 slightly negative
SUMMARY = ("probability", "rougeL_recall", "truth_ratio", "truth_ratio_geometric")
UTILITY = ("probability", "rougeL_recall", "truth_ratio")


class Question(NamedTuple):
    """One row; `paraphrased` is the answer itself where the set has no paraphrases."""

    question: str
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]

    def texts(self) -> tuple[str, ...]:
        """The answers to score."""
        return (self.answer, self.paraphrased, *self.perturbed)


def load_sets(path: str, names: Mapping[str, str]) -> dict[str, list[Record]]:
    """TOFU's sets from the hub ("locuslab/TOFU") or a local folder; `names` are their configurations."""
    from unlora.data import load_records

    return {name: load_records(path, config, argument=name) for name, config in names.items()}


def configured_sets(config: TofuSettings) -> dict[str, list[Record]]:
    """The sets of `config.eval_data`."""
    assert config.eval_data is not None
    names = {name: getattr(config, f"eval_{name}_name") for name in ("forget", "retain", "real_authors", "world_facts")}
    return load_sets(config.eval_data, {name: value for name, value in names.items() if value != "none"})


def evaluate(
    model: nn.Module,
    sets: Mapping[str, Sequence[Record]],
    text_format: TextFormat,
    settings: EvalSettings,
    progress: Callable[[int], None] | None = None,
) -> Log:
    """Scores and questions the model on every set.

    Args:
        model: a causal LM, with or without adapters.
        sets: rows by set name (retain, real_authors, world_facts, forget; any of them). A row has question and answer,
            and may have paraphrased_answer (the answer stands in for it) and perturbed_answer (a list of wrong
            answers); what cannot be computed without them is not in the log.
        text_format: how rows become tokens.
        settings: how much is evaluated.
        progress: called with the number of texts done so far, of all questions asked and then all answers scored.

    Raises:
        InputError: unknown or empty sets, or rows that lack a column that others of their set have.
    """
    from unlora.evals.scoring import answer_examples, generate_answers, token_nll

    raise_if(settings.problems())
    _check_sets(sets)
    questions = _questions(sets, settings)
    # Every text once: one length-sorted run for all sets wastes the least padding. Questions come first because what
    # the model has no room for shows there.
    asked, pairs = _texts_once(questions)
    answers = generate_answers(model, asked, text_format, settings.max_new_tokens, settings.eval_batch_size, progress)
    after = None if progress is None else lambda done: progress(len(asked) + done)
    examples = answer_examples(pairs, text_format)
    tokens = token_nll(model, examples, text_format, settings.eval_batch_size, after)
    losses = {pair: (float(nll.sum()), len(nll)) for pair, nll in zip(pairs, tokens, strict=True)}
    scored = dict(zip(pairs, zip(examples, tokens, strict=True), strict=True))
    generated = dict(zip(asked, answers, strict=True))
    log: Log = {}
    for name, rows in questions.items():
        columns = _loss_columns(name, rows, losses) | _text_columns(name, rows, generated, text_format)
        if name == "forget":
            columns |= _token_columns([scored[row.question, row.answer] for row in rows], text_format)
        log[TASKS[name]] = {metric: _numbered(column) for metric, column in columns.items()}
    return log


def text_count(sets: Mapping[str, Sequence[Record]], settings: EvalSettings) -> int:
    """How many texts `evaluate` tells its `progress` of in all."""
    asked, pairs = _texts_once(_questions(sets, settings))
    return len(asked) + len(pairs)


def _questions(sets: Mapping[str, Sequence[Record]], settings: EvalSettings) -> dict[str, list[Question]]:
    return {name: read_questions(name, sets[name][: settings.ds_size]) for name in TASKS if name in sets}


def _texts_once(questions: Mapping[str, Sequence[Question]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Every question, and every question with one of its answers."""
    rows = [row for part in questions.values() for row in part]
    pairs = dict.fromkeys((row.question, text) for row in rows for text in row.texts())
    return list(dict.fromkeys(row.question for row in rows)), list(pairs)


def _numbered(column: Sequence[Any]) -> dict[str, Any]:
    return {str(index): value for index, value in enumerate(column)}


def _check_sets(sets: Mapping[str, Sequence[Record]]) -> None:
    if not sets:
        raise InputError(Problem("sets", "{}", "there is nothing to evaluate", f"give some of {', '.join(TASKS)}"))
    raise_if(unknown_name("sets", name, TASKS) for name in sets if name not in TASKS)
    raise_if(
        Problem(name, "0 rows", "the set is empty", "give it rows or leave it out")
        for name in sets
        if not len(sets[name])
    )


def read_questions(name: str, rows: Sequence[Record]) -> list[Question]:
    """The rows, checked: every row must have the columns that the first has, and as many wrong answers.

    `name` is of the set, for errors.
    """
    columns = _answer_columns(rows[0])
    found: list[Question] = []
    for index, row in enumerate(rows):
        where = f"{name}[{index}]"
        if _answer_columns(row) != columns:
            reason = f"row 0 has {columns or 'no other answers'}, this row {_answer_columns(row) or 'none'}"
            raise InputError(Problem(where, sorted(row), reason, "give every row of a set the same columns"))
        question, answer = _text(where, row, "question"), _text(where, row, "answer")
        paraphrased = _text(where, row, "paraphrased_answer") if "paraphrased_answer" in columns else answer
        perturbed = _texts(where, row, "perturbed_answer") if "perturbed_answer" in columns else ()
        if found and len(perturbed) != len(found[0].perturbed):
            reason = f"row 0 has {len(found[0].perturbed)} wrong answers, this row {len(perturbed)}"
            fix = "give every row of a set as many"
            raise InputError(Problem(f"{where}.perturbed_answer", list(perturbed), reason, fix))
        found.append(Question(question, answer, paraphrased, perturbed))
    return found


def _answer_columns(row: Record) -> list[str]:
    return [key for key in ("paraphrased_answer", "perturbed_answer") if row.get(key) is not None]


def _text(where: str, row: Record, key: str) -> str:
    value = row.get(key)
    if not _is_text(value):
        raise InputError(Problem(f"{where}.{key}", value, "not a filled text", "rename the columns or fill the row"))
    return str(value)


def _texts(where: str, row: Record, key: str) -> tuple[str, ...]:
    values = row[key]
    if isinstance(values, str) or not values or not all(map(_is_text, values)):
        raise InputError(
            Problem(f"{where}.{key}", values, "not a list of filled texts", "list at least one wrong answer")
        )
    return tuple(values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _loss_columns(
    name: str, rows: Sequence[Question], losses: Mapping[tuple[str, str], tuple[float, int]]
) -> dict[str, list[Any]]:
    """TOFU's metrics of the losses: for each the sum over tokens, the number of tokens and the average."""
    right = [losses[row.question, row.answer] for row in rows]
    other = [losses[row.question, row.paraphrased] for row in rows]
    wrong = [[losses[row.question, text] for text in row.perturbed] for row in rows]
    columns: dict[str, list[Any]] = {
        "avg_gt_loss": _averages(right),
        "gt_loss": [nll for nll, _ in right],
        "num_token_gt": [count for _, count in right],
        "avg_paraphrased_loss": _averages(other),
        "paraphrased_loss": [nll for nll, _ in other],
        "num_token_paraphrased": [count for _, count in other],
    }
    if not wrong[0]:
        return columns
    columns["average_perturb_loss"] = [_averages(row) for row in wrong]
    columns["perturb_loss"] = [[nll for nll, _ in row] for row in wrong]
    columns["num_token_perturb"] = [[count for _, count in row] for row in wrong]
    perturbed = columns["average_perturb_loss"]
    # The ratio in TOFU's logs is the one with the geometric mean.
    columns["truth_ratio"] = metrics.truth_ratio(columns["avg_paraphrased_loss"], perturbed, "geometric").tolist()
    if name in GENERAL_SETS:
        columns["normalized_gt_loss"] = metrics.normalised_nll(columns["avg_gt_loss"], perturbed).tolist()
    return columns


def _token_columns(
    scored: Iterable[tuple[Example, NDArray[np.float64]]], text_format: TextFormat
) -> dict[str, list[Any]]:
    """Beside TOFU's metrics: the text of each token of the answer and of its end, and its loss to four decimals."""
    from unlora.evals.scoring import labelled_texts

    pairs = [(labelled_texts(example, text_format.tokenizer), nll.round(4).tolist()) for example, nll in scored]
    texts, losses = map(list, zip(*pairs, strict=True))
    return {"gt_tokens": texts, "gt_token_loss": losses}


def _averages(scored: Iterable[tuple[float, int]]) -> list[float]:
    return [nll / count for nll, count in scored]


def _text_columns(
    name: str, rows: Sequence[Question], generated: Mapping[str, str], text_format: TextFormat
) -> dict[str, list[Any]]:
    """What the model was asked, what it said, what is right, and ROUGE between the last two."""
    from unlora.evals.scoring import encode_prompt

    decode = text_format.tokenizer.decode
    prompts = [decode(encode_prompt(row.question, text_format), clean_up_tokenization_spaces=False) for row in rows]
    said = [generated[row.question] for row in rows]
    metrics.warn_of_wordless(f"{name} set", [row.answer for row in rows])
    rouge = [metrics.rouge_recalls(text, row.answer) for text, row in zip(said, rows, strict=True)]
    return {
        "generated_text": [list(three) for three in zip(prompts, said, (row.answer for row in rows), strict=True)],
        "rouge1_recall": [scores["rouge1"] for scores in rouge],
        "rougeL_recall": [scores["rougeL"] for scores in rouge],
    }


def summarise(log: Log, retain_log: Log | None = None, expected: Sequence[str] = ()) -> dict[str, Any]:
    """The metrics of a log, as plain JSON values; what the log cannot give is None.

    Args:
        log: of the model in question.
        retain_log: of a model trained without the forget set; None leaves forget quality None.
        expected: the sets of a benchmark (`BENCHMARK_SETS`): where it lacks one of their terms, there is
            no model utility, as it would not be the benchmark's. Not given for sets of one's own.

    Returns:
        By name:

        - `sets`: by set name, probability, rougeL_recall, truth_ratio and truth_ratio_geometric. The truth ratio is
          mean max(0, 1−R), on the forget set mean min(R, 1/R), with R from the arithmetic and the geometric mean.
        - `model_utility`: harmonic mean of probability, rougeL_recall and (arithmetic) truth_ratio of all sets but
          forget, over those that are there; `utility_terms` names them, nine for a whole TOFU log.
        - `missing_utility_terms`: those of the expected sets that the log lacks; then model utility is None.
        - `forget_quality`, `log10_forget_quality`: Kolmogorov-Smirnov p-value against `retain_log`.

    Raises:
        InputError: values that are not finite, or a forget quality asked of logs without forget truth ratios, or of
            different forget sets.
    """
    sets = {name: _summarise_set(name, log[task]) for name, task in TASKS.items() if task in log}
    values = {f"{name} {key}": sets[name][key] for name in sets if name != "forget" for key in UTILITY}
    terms = {term: value for term, value in values.items() if value is not None}
    needed = [f"{name} {key}" for name in expected if name != "forget" for key in UTILITY]
    missing = [term for term in needed if term not in terms]
    quality = None
    if retain_log is not None:
        ratios = forget_truth_ratios("log", log), forget_truth_ratios("retain_log", retain_log)
        task = log[TASKS["forget"]]
        check_same_examples(_references(task), _column(task, "average_perturb_loss"), retain_log)
        quality = metrics.forget_quality(*ratios)
    return {
        "sets": sets,
        "model_utility": metrics.model_utility(list(terms.values())) if terms and not missing else None,
        "utility_terms": list(terms),
        "missing_utility_terms": missing,
        "forget_quality": quality,
        "log10_forget_quality": None if quality is None else math.log10(quality),
    }


def _summarise_set(name: str, task: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    values = example_values(name, task)
    return {metric: float(values[metric].mean()) if metric in values else None for metric in SUMMARY}


def example_values(name: str, task: Mapping[str, Mapping[str, Any]]) -> dict[str, metrics.Values]:
    """By metric of a set's summary the values, [examples], that it is the mean of; without what the log cannot give."""
    answers, wrong = _column(task, "avg_gt_loss"), _column(task, "average_perturb_loss")
    rouge = _column(task, "rougeL_recall")
    values: dict[str, metrics.Values] = {}
    if answers and (wrong or name not in GENERAL_SETS):
        general = name in GENERAL_SETS
        probability = metrics.normalised_probability(answers, wrong) if general else metrics.answer_probability(answers)
        values["probability"] = probability
    if rouge:
        values["rougeL_recall"] = metrics.finite_values("rougeL_recall", rouge)
    if wrong and "avg_paraphrased_loss" in task:
        score = metrics.forget_truth_scores if name == "forget" else metrics.retain_truth_scores
        values["truth_ratio"] = score(_truth_ratios(task, "arithmetic"))
        values["truth_ratio_geometric"] = score(_truth_ratios(task, "geometric"))
    return values


def _truth_ratios(task: Mapping[str, Mapping[str, Any]], mean: str) -> metrics.Values:
    return metrics.truth_ratio(_column(task, "avg_paraphrased_loss"), _column(task, "average_perturb_loss"), mean)


def forget_truth_ratios(argument: str, log: Log) -> metrics.Values:
    """The geometric truth ratios of the forget set, [examples], which forget quality compares.

    Raises:
        InputError: the log, named by `argument`, lacks the losses.
    """
    task = log.get(TASKS["forget"], {})
    if not {"avg_paraphrased_loss", "average_perturb_loss"} <= task.keys():
        reason = f"forget quality needs the paraphrased and perturbed losses of {TASKS['forget']}"
        raise InputError(Problem(argument, sorted(log), reason, "evaluate the forget set with perturbed answers"))
    return _truth_ratios(task, "geometric")


def check_same_examples(
    answers: Sequence[str], perturbed: Sequence[Sequence[Any]], retain_log: Log, argument: str = "retain_log"
) -> None:
    """Refuses a retain log of another forget set: of other answers, or of other numbers of wrong answers.

    Args:
        answers: by example its right answer, compared where the retain log has them; empty if they are not known.
        perturbed: by example its wrong answers, or their losses.
        retain_log: of a model trained without the forget set.
        argument: what the user calls it.
    """
    task = retain_log[TASKS["forget"]]
    theirs, references = _column(task, "average_perturb_loss"), _references(task)
    fix = "evaluate both models on the same forget set, with the same ds_size"
    if len(theirs) != len(perturbed):
        reason = f"{len(perturbed)} forget examples are compared with it"
        raise InputError(Problem(argument, f"{len(theirs)} forget examples", reason, fix))
    for index, (ours, other) in enumerate(zip(perturbed, theirs, strict=True)):
        if len(ours) != len(other):
            reason = f"forget example {index} has {len(ours)} here"
            raise InputError(Problem(argument, f"{len(other)} perturbed answers", reason, fix))
    for index, (answer, reference) in enumerate(zip(answers, references, strict=False)):
        # In TOFU's logs the references went through a tokenizer, which may lose blanks.
        if "".join(answer.split()) != "".join(reference.split()):
            reason = f"the answer of forget example {index} is {answer!r} here"
            raise InputError(Problem(argument, reference, reason, fix))


def _references(task: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The right answers; empty if the log lacks them."""
    return [reference for _, _, reference in _column(task, "generated_text")]


def _column(task: Mapping[str, Mapping[str, Any]], metric: str) -> list[Any]:
    """A metric's values in the order of the examples' numbers; empty if the log lacks it."""
    values = task.get(metric, {})
    return [values[index] for index in sorted(values, key=int)]


def read_log(path: str | Path, argument: str = "log") -> Log:
    """Reads a log; `argument` is what the user calls it, for errors.

    Raises:
        InputError: no such file, not JSON, not {task file: {metric: {index: value}}}, a loss below 0, a recall outside
            [0, 1], or examples of a set with different numbers of wrong answers.
    """
    try:
        log = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(Problem(argument, str(path), f"cannot be read as JSON: {error}", "check the path")) from error
    reason = _schema_error(log)
    if reason:
        fix = "give a log as TOFU's or our evaluation writes it: {task file: {metric: {index: value}}}"
        raise InputError(Problem(argument, str(path), reason, fix))
    checked: Log = log
    return checked


def _schema_error(log: Any) -> str | None:
    """Why this is not a log, or None."""
    if not isinstance(log, dict) or not log.keys() & set(TASKS.values()):
        return f"it has none of the tasks {', '.join(TASKS.values())}"
    for task in log.keys() & set(TASKS.values()):
        columns = log[task]
        if not isinstance(columns, dict) or not all(isinstance(column, dict) for column in columns.values()):
            return f"{task} is not {{metric: {{index: value}}}}"
        if len({frozenset(column) for column in columns.values()}) > 1:
            return f"the metrics of {task} do not have the same examples"
        if not all(index.isdecimal() for column in columns.values() for index in column):
            return f"the examples of {task} are not numbered"
        reason = _value_error(task, columns)
        if reason:
            return reason
        texts = columns.get("generated_text", {}).values()
        if not all(isinstance(row, list) and [type(text) for text in row] == [str] * 3 for row in texts):
            return f"generated_text of {task} is not prompt, answer and reference for each example"
    return None


def _value_error(task: str, columns: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why the numbers of a task cannot be what they are called, or None."""
    for metric in SCALARS:
        least, most = (0.0, 1.0) if metric == "rougeL_recall" else (LEAST_LOSS, math.inf)
        for index, value in columns.get(metric, {}).items():
            if not _is_number(value):
                return f"{metric} of {task} is not a number for each example"
            if value < least or value > most:
                return f"{metric} of {task} is {value} at example {index}: not in [0, {most:g}]"
    rows = columns.get("average_perturb_loss", {})
    for index, row in rows.items():
        if not isinstance(row, list) or not row or not all(map(_is_number, row)):
            return f"average_perturb_loss of {task} is not a list of numbers for each example"
        if min(row) < LEAST_LOSS:
            return f"average_perturb_loss of {task} is {min(row)} at example {index}: a loss is at least 0"
    count = len(next(iter(rows.values()), []))
    for metric in ("average_perturb_loss", "perturb_loss", "num_token_perturb"):
        for index, row in columns.get(metric, rows).items():
            if not isinstance(row, list) or len(row) != count:
                return f"{metric} of {task} has not {count} wrong answers at example {index}, as the first example has"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_log(log: Log, path: str | Path) -> None:
    """Writes a log whole or not at all; a file of that name is replaced."""
    write_text(path, json.dumps(log, allow_nan=False))
