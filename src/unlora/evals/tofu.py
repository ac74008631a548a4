"""TOFU's evaluation (Maini et al. 2024, https://arxiv.org/abs/2401.06121), in the format of its published logs.

A log is {task file: {metric: {index: value}}}. It contains the values of single examples only, and `summarise` computes
the metrics from it. So logs that TOFU's own code wrote are treated like ours. The same code evaluates any benchmark
whose sets have TOFU's columns, with any number of the sets.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.evals import metrics
from unlora.evals.membership.readings import token_columns
from unlora.evals.progress import Progress, continued
from unlora.evals.text_quality import reference_measures, summarise_text, text_columns
from unlora.settings import EvalSettings, TofuSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from unlora.data import Asked, Example, TextFormat
    from unlora.data.conversations import Answered
    from unlora.data.sources import Record
    from unlora.evals.scoring import TokenScores

    Pair = tuple[Asked, str]  # what is asked and an answer

Columns = Mapping[str, Mapping[str, Any]]  # of one set: {metric: {index: value}}
Log = dict[str, dict[str, dict[str, Any]]]

TASKS = {
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
# Rows that no model was trained on, for membership inference. They are only scored, and are no part of model utility.
HOLDOUT = "holdout"
# The entry of a log that keeps a file of open-unlearning, from which the log was made.
KEPT = "open_unlearning"
# The name in a log of every set that can be evaluated.
FILES = {**TASKS, HOLDOUT: "eval_log_holdout.json"}
# The sets in a complete evaluation log of each benchmark.
BENCHMARK_SETS = {
    "tofu": ("retain", "real_authors", "world_facts", "forget"),
    "persona": ("retain", "world_facts", "forget"),
}
# Sets that the model was never fine-tuned on. Their probability is normalised over the right and the wrong answers.
_GENERAL_SETS = ("real_authors", "world_facts")
# The sets that membership inference tells apart.
_ATTACKED = ("forget", HOLDOUT)
# Columns of answers that a set may lack, but then lacks in all rows.
_OTHER_ANSWERS = ("paraphrased_answer", "perturbed_answer")
# The metrics that model utility is the mean of, and all metrics of a set.
UTILITY = ("probability", "rougeL_recall", "truth_ratio")
_SUMMARY = (*UTILITY, "truth_ratio_geometric")


class Question(NamedTuple):
    """What a model is asked, and the answers that are scored.

    Args:
        question: a question, or the turns of a conversation before an answer of the assistant.
        answer: the right answer.
        paraphrased: the same in other words; the answer itself if the set has no paraphrases.
        perturbed: wrong answers.
        paraphrased_question: the question in other words, if the set has it.
        where: what the user calls it, for error messages.
    """

    question: Asked
    answer: str
    paraphrased: str
    perturbed: tuple[str, ...]
    paraphrased_question: str | None
    where: str

    def texts(self) -> tuple[str, ...]:
        """Return the answers to score."""
        return (self.answer, self.paraphrased, *self.perturbed)


def configured_sets(config: TofuSettings) -> dict[str, list[Record]]:
    """Load the sets that `config` names from its `eval_data`: a local folder or a dataset on the Hub.

    Raises:
        InputError: sets that cannot be read, or forget rows that are in the holdout set.
    """
    from unlora.data import check_overlap, check_rows, load_records

    assert config.eval_data is not None
    subsets = {name: getattr(config, f"eval_{name}_name") for name in ("forget", "retain", *_GENERAL_SETS, HOLDOUT)}
    chosen = {name: subset for name, subset in subsets.items() if subset != "none"}
    sets = {name: load_records(config.eval_data, subset, argument=name) for name, subset in chosen.items()}
    for name, rows in sets.items():
        check_rows(rows, name)
    if {"forget", HOLDOUT} <= sets.keys():
        check_overlap(sets["forget"], sets[HOLDOUT], names=("forget", HOLDOUT))
    return sets


def evaluate(
    model: nn.Module,
    sets: Mapping[str, Sequence[Record]],
    text_format: TextFormat,
    settings: EvalSettings,
    progress: Progress | None = None,
) -> Log:
    """Ask the model every question, and score every answer of every set.

    Args:
        model: a causal LM, with or without adapters.
        sets: rows by the name of their set (any of retain, real_authors, world_facts, forget, holdout). A row has a
            question and an answer, or messages, whose every answer of the assistant is an example; plain text is passed
            over. It may have a paraphrased_answer, which otherwise is the answer itself, and a perturbed_answer, which
            is a list of wrong answers. The log lacks the metrics that need what is missing.
        text_format: how rows become tokens.
        settings: how much is evaluated, and how.
        progress: called with the number of texts done so far: all questions first, then all answers.

    Returns:
        The log. See `generated_texts` for the model's own answers in it.

    Raises:
        InputError: wrong settings, unknown or empty sets, or rows that lack a column which others of their set have.
    """
    from unlora.evals.generation import generate_answers
    from unlora.evals.scoring import score_tokens, token_nll

    raise_if(settings.problems())
    _check_sets(sets)
    questions = _questions(sets, settings)
    # All sets together, and each text once: this leaves the least padding. Questions come first, because they need more
    # positions than the answers, so that an input which is too long is refused before anything is scored.
    asked, pairs, attacked = _distinct_texts(questions)
    size = settings.eval_batch_size
    scored_examples, examples = (_examples(texts, text_format) for texts in (pairs, attacked))
    answers = generate_answers(model, asked, text_format, settings.max_new_tokens, size, progress) if asked else []
    scored: dict[Pair, NDArray[np.float64]] = {}
    if pairs:
        losses = token_nll(model, scored_examples, text_format, size, continued(progress, len(asked)))
        scored = dict(zip(pairs, losses, strict=True))
    tokens: dict[Pair, TokenScores] = {}
    if attacked:
        later = continued(progress, len(asked) + len(pairs))
        tokens = dict(zip(attacked, score_tokens(model, examples, text_format, size, later), strict=True))
    scored |= {pair: -scores.logp.astype("float64") for pair, scores in tokens.items()}
    example_of = dict(zip(attacked, examples, strict=True))
    generated = dict(zip(asked, answers, strict=True))
    log: Log = {}
    for name, rows in questions.items():
        columns = _loss_columns(name, rows, scored)
        if name != HOLDOUT:
            columns |= _text_columns(name, rows, generated, text_format)
        if name in _ATTACKED:
            columns |= _token_columns(rows, example_of, tokens, text_format)
        log[FILES[name]] = {metric: {str(i): value for i, value in enumerate(c)} for metric, c in columns.items()}
    return log


def add_text_columns(
    log: Log,
    sets: Mapping[str, Sequence[Record]],
    original: nn.Module,
    text_format: TextFormat,
    settings: EvalSettings,
) -> Log:
    """Return the log with how good the generated answers are as text, and how much of each fact they give away.

    Args:
        log: an evaluation log, of any model.
        sets: the rows that it is of, by set.
        original: the model before unlearning, which judges the text; left as it was found.
        text_format: how texts become tokens.
        settings: the batch size.
    """
    added = {}
    for name in [name for name in TASKS if name in sets]:
        if texts := log.get(TASKS[name], {}).get("generated_text"):
            answered = [as_row(question) for question in read_questions(name, sets[name], len(texts))]
            columns = text_columns(log[TASKS[name]], answered, original, text_format, settings.eval_batch_size)
            added[TASKS[name]] = columns
    return {task: {**columns, **added.get(task, {})} for task, columns in log.items()}


def as_row(question: Question) -> Record:
    """Return the texts of a question as a row."""
    asked, wrong = str(question.question), list(question.perturbed)
    return {"question": asked, "answer": question.answer, "perturbed_answer": wrong}


def text_count(sets: Mapping[str, Sequence[Record]], settings: EvalSettings) -> int:
    """Return the number of texts that `evaluate` reports to `progress` in total."""
    asked, pairs, attacked = _distinct_texts(_questions(sets, settings))
    return len(asked) + len(pairs) + len(attacked)


def _questions(sets: Mapping[str, Sequence[Record]], settings: EvalSettings) -> dict[str, list[Question]]:
    return {name: read_questions(name, sets[name], settings.ds_size) for name in FILES if name in sets}


def _distinct_texts(
    questions: Mapping[str, Sequence[Question]],
) -> tuple[list[Asked], dict[Pair, str], dict[Pair, str]]:
    """Return each text once: the questions to ask, the answers to score, and the answers whose tokens are looked at.

    The last are the right answers of the forget and the holdout set, which memorisation and membership are about. All
    answers come with what the user calls them.
    """
    attacked = {(row.question, row.answer): row.where for name in _ATTACKED for row in questions.get(name, ())}
    rows = [row for name, part in questions.items() if name != HOLDOUT for row in part]
    pairs = {(row.question, text): row.where for row in rows for text in row.texts()}
    asked = dict.fromkeys(row.question for row in rows)
    return list(asked), {pair: where for pair, where in pairs.items() if pair not in attacked}, attacked


def _examples(pairs: Mapping[Pair, str], text_format: TextFormat) -> list[Example]:
    """Tokenise questions with their answers, which may be none."""
    from unlora.data import encode_answers

    return encode_answers(list(pairs), text_format, where=list(pairs.values()))


def _check_sets(sets: Mapping[str, Sequence[Record]]) -> None:
    if not sets:
        raise InputError(Problem("sets", "{}", "there is nothing to evaluate", f"give some of {', '.join(FILES)}"))
    raise_if(unknown_name("sets", name, FILES) for name in sets if name not in FILES)
    empty = [name for name, rows in sets.items() if not len(rows)]
    raise_if(Problem(name, "0 rows", "the set is empty", "add rows to it, or remove it") for name in empty)


def read_questions(name: str, rows: Sequence[Record], limit: int | None = None) -> list[Question]:
    """Return what the rows of the set `name` ask, at most `limit` questions. Plain text asks nothing.

    Raises:
        InputError: a row lacks a text, has other columns than the first row, or another number of wrong answers.
    """
    answers = list(islice(_answers(name, rows), limit))
    if rows and not answers:
        fix = "give rows of question and answer, or conversations"
        raise InputError(Problem(name, f"{len(rows)} rows", "plain text asks nothing", fix))
    questions = [_question(answer, answers[0]) for answer in answers]
    for question in questions:
        if len(question.perturbed) != (count := len(questions[0].perturbed)):
            reason = f"row 0 has {count} wrong answers, this row {len(question.perturbed)}"
            fix = "give all rows of a set the same number of wrong answers"
            raise InputError(Problem(f"{question.where}.perturbed_answer", list(question.perturbed), reason, fix))
    return questions


def _answers(name: str, rows: Sequence[Record]) -> Iterator[Answered]:
    from unlora.data.conversations import Answered, answers_of
    from unlora.data.sources import is_text

    for index, row in enumerate(rows):
        where = f"{name}[{index}]"
        if not is_text(row):
            # A row without an answer is refused by the name of what it lacks.
            yield from answers_of(row, where) or [Answered("", "", row, where)]


def _question(one: Answered, first: Answered) -> Question:
    where, columns = one.where, one.columns
    found, expected = ([key for key in _OTHER_ANSWERS if part.columns.get(key) is not None] for part in (one, first))
    if found != expected:
        reason = f"row 0 has {expected or 'no other answers'}, this row {found or 'none'}"
        raise InputError(Problem(where, sorted(columns), reason, "give every row of a set the same columns"))
    for key in (*(("question", "answer") if isinstance(one.asked, str) else ()), *found):
        texts = columns.get(key) if key == "perturbed_answer" else [columns.get(key)]
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            kind = "a list of non-empty texts" if key == "perturbed_answer" else "a non-empty text"
            raise InputError(
                Problem(f"{where}.{key}", columns.get(key), f"it must be {kind}", "rename or fill the column")
            )
    paraphrased = columns["paraphrased_answer"] if "paraphrased_answer" in found else one.answer
    wrong = tuple(columns.get("perturbed_answer") or ())
    return Question(one.asked, one.answer, paraphrased, wrong, columns.get("paraphrased_question"), where)


def _loss_columns(
    name: str, rows: Sequence[Question], scored: Mapping[Pair, NDArray[np.float64]]
) -> dict[str, list[Any]]:
    """Return TOFU's metrics of the losses, [rows] each."""
    right = [scored[row.question, row.answer] for row in rows]
    if name == HOLDOUT:  # only the right answers are scored: membership compares them with those of the forget set
        return _three("avg_gt_loss", "gt", right)
    paraphrased = [scored[row.question, row.paraphrased] for row in rows]
    columns = _three("avg_gt_loss", "gt", right) | _three("avg_paraphrased_loss", "paraphrased", paraphrased)
    if not rows[0].perturbed:
        return columns
    wrong = [[scored[row.question, text] for text in row.perturbed] for row in rows]
    parts = [_three("average_perturb_loss", "perturb", row) for row in wrong]
    columns |= {metric: [part[metric] for part in parts] for metric in parts[0]}
    perturbed = columns["average_perturb_loss"]
    # The ratio in TOFU's logs is the one with the geometric mean.
    columns["truth_ratio"] = metrics.truth_ratio(columns["avg_paraphrased_loss"], perturbed, "geometric").tolist()
    if name in _GENERAL_SETS:
        columns["normalized_gt_loss"] = metrics.normalised_nll(columns["avg_gt_loss"], perturbed).tolist()
    return columns


def _three(average: str, name: str, losses: Sequence[NDArray[np.float64]]) -> dict[str, list[Any]]:
    """Return average, sum and number of tokens of each loss, by TOFU's names; `average` is that of the average."""
    return {
        average: [float(nll.mean()) for nll in losses],
        f"{name}_loss": [float(nll.sum()) for nll in losses],
        f"num_token_{name}": [len(nll) for nll in losses],
    }


def _token_columns(
    rows: Sequence[Question],
    example_of: Mapping[Pair, Example],
    tokens: Mapping[Pair, TokenScores],
    text_format: TextFormat,
) -> dict[str, list[Any]]:
    """Return columns that TOFU's logs lack: each labelled token's text, and what memorisation is computed from."""
    from unlora.evals.generation import labelled_texts
    from unlora.models.generation import decode

    pairs = [(row.question, row.answer) for row in rows]
    labels = [[label for label in example_of[pair]["labels"] if label >= 0] for pair in pairs]
    sizes = [len(zlib.compress(decode(part, text_format.tokenizer).encode())) for part in labels]
    return {
        "gt_tokens": [labelled_texts(example_of[pair], text_format.tokenizer) for pair in pairs],
        **token_columns([tokens[pair] for pair in pairs], sizes),
    }


def _text_columns(
    name: str, rows: Sequence[Question], generated: Mapping[Asked, str], text_format: TextFormat
) -> dict[str, list[Any]]:
    """Return [prompt, generated answer, right answer] of each row, and ROUGE between the two answers.

    Of a chat, "turns" has what the model is asked without the marks of the template: [role, text] of each turn.
    """
    from unlora.data.encoding import encode_prompts

    decode = text_format.tokenizer.decode
    tokens = encode_prompts([row.question for row in rows], text_format)
    prompts = [decode(ids, clean_up_tokenization_spaces=False) for ids in tokens]
    metrics.warn_of_wordless(f"{name} set", [row.answer for row in rows])
    rouge = [metrics.rouge_recalls(generated[row.question], row.answer) for row in rows]
    chat = text_format.is_chat or not all(isinstance(row.question, str) for row in rows)
    turns = {"turns": [text_format.template.context(row.question).shown() for row in rows]} if chat else {}
    return turns | {
        "generated_text": [
            [prompt, generated[row.question], row.answer] for prompt, row in zip(prompts, rows, strict=True)
        ],
        "rouge1_recall": [scores["rouge1"] for scores in rouge],
        "rougeL_recall": [scores["rougeL"] for scores in rouge],
    }


def generated_texts(log: Log, name: str) -> list[tuple[str, str, str]]:
    """Return (prompt, generated answer, right answer) of each example of the set `name`; empty if the log has none."""
    return [(prompt, said, right) for prompt, said, right in _column(log.get(TASKS[name], {}), "generated_text")]


def summarise(log: Log, retrained: Log | None = None, expected: Sequence[str] = ()) -> dict[str, Any]:
    """Return the metrics of a log as plain JSON values. A metric that the log does not allow is None.

    Args:
        log: of the model to judge.
        retrained: of a model trained without the forget set. Without it, or without wrong answers in both logs, there
            is no forget quality.
        expected: the sets of the benchmark (`BENCHMARK_SETS`). If the log lacks one of their terms, there is no model
            utility, because it would not be comparable with the benchmark's. Empty for the user's own sets.

    Returns:
        By name:

        - `sets`: by set name, probability, rougeL_recall, truth_ratio and truth_ratio_geometric. The truth ratio is
          mean max(0, 1−R), on the forget set mean min(R, 1/R), with R from the arithmetic and the geometric mean.
          If the log has them, the counts and means of `summarise_text` as well.
        - `model_utility`: harmonic mean of probability, rougeL_recall and (arithmetic) truth_ratio over all sets except
          forget, as far as the log has them. `utility_terms` names them: a complete TOFU log has nine. This is the
          definition of TOFU's own code.
        - `model_utility_geometric`: the same with the geometric truth ratio, as in the aggregation script of TOFU, LoKU
          and VILA, and in open-unlearning.
        - `missing_utility_terms`: the terms of the expected sets that the log lacks. If any, model utility is None.
        - `forget_quality`, `log10_forget_quality`: Kolmogorov-Smirnov p-value against `retrained`.

    Raises:
        InputError: values that are not finite, or a `retrained` of another forget set, or only one of the logs has
            forget truth ratios.
    """
    tasks = {name: log[task] for name, task in TASKS.items() if task in log}
    references = reference_measures(log)
    sets = {name: {**_summarise_set(name, task), **summarise_text(task, references)} for name, task in tasks.items()}
    values = {f"{name} {key}": sets[name][key] for name in sets if name != "forget" for key in UTILITY}
    terms = {term: value for term, value in values.items() if value is not None}
    needed = [f"{name} {key}" for name in expected if name != "forget" for key in UTILITY]
    missing = [term for term in needed if term not in terms]
    quality = None
    if retrained is not None:
        ratios = both_truth_ratios(log, retrained)
        check_same_examples(forget_examples(log), retrained)
        quality = metrics.forget_quality(*ratios) if ratios else None
    return {
        "sets": sets,
        "model_utility": metrics.model_utility(list(terms.values())) if terms and not missing else None,
        "model_utility_geometric": _geometric_utility(sets, needed),
        "utility_terms": list(terms),
        "missing_utility_terms": missing,
        "forget_quality": quality,
        "log10_forget_quality": None if quality is None else math.log10(quality),
    }


def _geometric_utility(sets: Mapping[str, Mapping[str, Any]], needed: Sequence[str]) -> float | None:
    """Return model utility with the geometric truth ratio, or None if a needed term is missing."""
    names = {key: "truth_ratio_geometric" if key == "truth_ratio" else key for key in UTILITY}
    values = {f"{name} {key}": sets[name][names[key]] for name in sets if name != "forget" for key in UTILITY}
    terms = {term: value for term, value in values.items() if value is not None}
    return metrics.model_utility(list(terms.values())) if terms and set(needed) <= terms.keys() else None


def _summarise_set(name: str, columns: Columns) -> dict[str, float | None]:
    values = example_values(name, columns)
    return {metric: float(values[metric].mean()) if metric in values else None for metric in _SUMMARY}


def example_values(name: str, columns: Columns) -> dict[str, metrics.Values]:
    """Return the values that the metrics of a set are the means of: by metric [examples], as far as the log has them.

    Args:
        name: of the set.
        columns: what the log has of it.
    """
    answers, wrong = _column(columns, "avg_gt_loss"), _column(columns, "average_perturb_loss")
    rouge = _column(columns, "rougeL_recall")
    values: dict[str, metrics.Values] = {}
    if answers and name not in _GENERAL_SETS:
        values["probability"] = metrics.answer_probability(answers)
    elif answers and wrong:
        values["probability"] = metrics.normalised_probability(answers, wrong)
    if rouge:
        values["rougeL_recall"] = metrics.finite_values("rougeL_recall", rouge)
    score = metrics.forget_truth_scores if name == "forget" else metrics.retain_truth_scores
    if wrong and "avg_paraphrased_loss" in columns:
        values["truth_ratio"] = score(_truth_ratios(columns, "arithmetic"))
    if has_truth_ratios(columns):
        values["truth_ratio_geometric"] = score(geometric_ratios(columns))
    return values


def has_truth_ratios(columns: Columns) -> bool:
    """Whether a set in a log has geometric truth ratios, or the losses that they are computed from."""
    return "truth_ratio" in columns or {"avg_paraphrased_loss", "average_perturb_loss"} <= columns.keys()


def geometric_ratios(columns: Columns) -> metrics.Values:
    """Return the geometric truth ratios of a set, [examples]. Some logs have only them, and not the losses."""
    if {"avg_paraphrased_loss", "average_perturb_loss"} <= columns.keys():
        return _truth_ratios(columns, "geometric")
    return metrics.finite_values("truth_ratio", _column(columns, "truth_ratio"))


def _truth_ratios(columns: Columns, mean: str) -> metrics.Values:
    return metrics.truth_ratio(_column(columns, "avg_paraphrased_loss"), _column(columns, "average_perturb_loss"), mean)


def forget_truth_ratios(argument: str, log: Log) -> metrics.Values:
    """Return the geometric truth ratios of the forget set, [examples], from which forget quality is computed.

    Raises:
        InputError: the log, which the user gave as `argument`, lacks the losses.
    """
    columns = log.get(TASKS["forget"], {})
    if not has_truth_ratios(columns):
        reason = f"forget quality needs the paraphrased and perturbed losses of {TASKS['forget']}"
        raise InputError(Problem(argument, sorted(log), reason, "evaluate the forget set with perturbed answers"))
    return geometric_ratios(columns)


def both_truth_ratios(log: Log, retrained: Log) -> tuple[metrics.Values, metrics.Values] | None:
    """Return the forget truth ratios of both logs, or None if neither has any because there are no wrong answers.

    Raises:
        InputError: only one of them has truth ratios.
    """
    logs = {"log": log, "retrained": retrained}
    if not any(has_truth_ratios(one.get(TASKS["forget"], {})) for one in logs.values()):
        return None
    own, other = (forget_truth_ratios(name, one) for name, one in logs.items())
    return own, other


@dataclass(frozen=True)
class ForgetExamples:
    """What is known of the examples of a forget set, by their places in it.

    Args:
        count: how many there are, including those that could not be scored.
        answers: the right answers.
        wrong: how many wrong answers an example has.
    """

    count: int
    answers: dict[int, str]
    wrong: dict[int, int]


def forget_examples(log: Log) -> ForgetExamples:
    """Return the examples of the forget set in a log. It may lack answers, or have truth ratios instead of losses.

    Examples that open-unlearning could not score are in the file it wrote, and in no column of the log.
    """
    columns, kept = log.get(TASKS["forget"], {}), log.get(KEPT, {})
    entries = [entry for metric, entry in kept.items() if metric.startswith("forget_Q_A_") and isinstance(entry, dict)]
    indices = {index for entry in entries for index in entry.get("value_by_index") or ()}.union(*columns.values())
    places = {index: place for place, index in enumerate(sorted(indices, key=int))}
    texts, losses = columns.get("generated_text", {}), columns.get("average_perturb_loss", {})
    return ForgetExamples(
        len(places),
        {places[index]: right for index, (_, _, right) in texts.items()},
        {places[index]: len(row) for index, row in losses.items()},
    )


def check_same_examples(ours: ForgetExamples, retrained: Log) -> None:
    """Raise `InputError` if the log of a retrained model is of another forget set.

    It then has another number of examples, other right answers, or other numbers of wrong answers.
    """
    theirs = forget_examples(retrained)
    fix = "evaluate both models on the same forget set, with the same ds_size"
    if theirs.count != ours.count:
        reason = f"{ours.count} forget examples are compared with it"
        raise InputError(Problem("retrained", f"{theirs.count} forget examples", reason, fix))
    for place in sorted(ours.wrong.keys() & theirs.wrong.keys()):
        if ours.wrong[place] != theirs.wrong[place]:
            reason = f"forget example {place} has {ours.wrong[place]} here"
            raise InputError(Problem("retrained", f"{theirs.wrong[place]} perturbed answers", reason, fix))
    for place in sorted(ours.answers.keys() & theirs.answers.keys()):
        answer, reference = ours.answers[place], theirs.answers[place]
        # In TOFU's logs the references were tokenised and decoded, which may lose spaces.
        if "".join(answer.split()) != "".join(reference.split()):
            reason = f"the answer of forget example {place} is {answer!r} here"
            raise InputError(Problem("retrained", reference, reason, fix))


def _column(columns: Columns, metric: str) -> list[Any]:
    """Return a metric's values in the order of the examples' numbers; empty if the log lacks it."""
    values = columns.get(metric, {})
    return [values[index] for index in sorted(values, key=int)]
