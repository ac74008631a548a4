"""TOFU's evaluation (Maini et al. 2024, https://arxiv.org/abs/2401.06121): generate answers, score answers, make a log.

This evaluates any benchmark whose sets have TOFU's columns, and any selection of the sets. `summary` computes the
metrics from the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.evals import metrics
from unlora.evals.log_format import FILES, GENERAL_SETS, HOLDOUT, TASKS, Log
from unlora.evals.membership.readings import token_columns
from unlora.evals.membership.scores import zlib_size
from unlora.evals.progress import Progress, continued
from unlora.evals.questions import Question, as_row, read_questions
from unlora.evals.text_quality import text_columns
from unlora.settings import EvalSettings, TofuSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from unlora.data import Asked, Example, TextFormat
    from unlora.data.sources import Record
    from unlora.evals.scoring import TokenScores

    Pair = tuple[Asked, str]  # a question and an answer

# The sets that membership inference tries to tell apart.
_ATTACKED = ("forget", HOLDOUT)


def configured_sets(config: TofuSettings) -> dict[str, list[Record]]:
    """Load the sets that `config` names from its `eval_data`: a local folder or a dataset on the Hub.

    Raises:
        InputError: a set cannot be read, or a forget row is also in the holdout set.
    """
    from unlora.data import check_overlap, check_rows, load_records

    assert config.eval_data is not None
    subsets = {name: getattr(config, f"eval_{name}_name") for name in ("forget", "retain", *GENERAL_SETS, HOLDOUT)}
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
    """Generate the model's answer to every question, and score every answer of every set.

    Args:
        model: a causal LM, with or without adapters.
        sets: rows by the name of their set (any of retain, real_authors, world_facts, forget, holdout). A row has a
            question and an answer, or messages, in which every answer of the assistant is an example. Rows of plain
            text are skipped. A row may have a paraphrased_answer (by default the answer itself) and a perturbed_answer,
            a list of wrong answers. Metrics that need a missing column are left out of the log.
        text_format: how rows become tokens.
        settings: the settings of the evaluation.
        progress: called with the number of texts done so far: all questions first, then all answers.

    Returns:
        The log. `generated_texts` returns the model's answers in it.

    Raises:
        InputError: the settings are wrong, a set is unknown or empty, or a row lacks a column of the other rows of its
            set.
    """
    from unlora.evals.generation import generate_answers
    from unlora.evals.scoring import score_tokens, token_nll

    raise_if(settings.problems())
    _check_sets(sets)
    questions = _questions(sets, settings)
    # All sets are processed together and each text only once, which needs the least padding. Questions come first,
    # because generation needs more positions than scoring: an input that is too long is refused before the long work.
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
    """Return the log with the columns of `text_columns`: the quality of the answers, and the facts that they give away.

    Args:
        log: an evaluation log of any model.
        sets: the evaluated rows by set.
        original: the model before unlearning, which scores the answers. It is left as it was found.
        text_format: how texts become tokens.
        settings: the settings of the evaluation; only the batch size is used.
    """
    texts = {name: log.get(TASKS[name], {}).get("generated_text") for name in TASKS if name in sets}
    asked = {name: read_questions(name, sets[name], len(part)) for name, part in texts.items() if part}
    rows = {name: list(map(as_row, questions)) for name, questions in asked.items()}
    added = {}
    for name, own in rows.items():
        columns = text_columns(
            log[TASKS[name]], own, rows.get("retain", []), original, text_format, settings.eval_batch_size
        )
        added[TASKS[name]] = columns
    return {task: {**columns, **added.get(task, {})} for task, columns in log.items()}


def text_count(sets: Mapping[str, Sequence[Record]], settings: EvalSettings) -> int:
    """Return the number of texts that `evaluate` reports to `progress` in total."""
    asked, pairs, attacked = _distinct_texts(_questions(sets, settings))
    return len(asked) + len(pairs) + len(attacked)


def _questions(sets: Mapping[str, Sequence[Record]], settings: EvalSettings) -> dict[str, list[Question]]:
    return {name: read_questions(name, sets[name], settings.ds_size) for name in FILES if name in sets}


def _distinct_texts(
    questions: Mapping[str, Sequence[Question]],
) -> tuple[list[Asked], dict[Pair, str], dict[Pair, str]]:
    """Return each text once: the questions, the answers that are scored as a whole, and those that are scored by token.

    The last are the right answers of the forget and the holdout set, from which memorisation and membership scores are
    computed. The values of both mappings name the answers' rows in error messages.
    """
    attacked = {(row.question, row.answer): row.where for name in _ATTACKED for row in questions.get(name, ())}
    rows = [row for name, part in questions.items() if name != HOLDOUT for row in part]
    pairs = {(row.question, text): row.where for row in rows for text in row.texts()}
    asked = dict.fromkeys(row.question for row in rows)
    return list(asked), {pair: where for pair, where in pairs.items() if pair not in attacked}, attacked


def _examples(pairs: Mapping[Pair, str], text_format: TextFormat) -> list[Example]:
    """Tokenise pairs of question and answer. There may be none."""
    from unlora.data import encode_answers

    return encode_answers(list(pairs), text_format, where=list(pairs.values()))


def _check_sets(sets: Mapping[str, Sequence[Record]]) -> None:
    if not sets:
        raise InputError(Problem("sets", "{}", "there is nothing to evaluate", f"give some of {', '.join(FILES)}"))
    raise_if(unknown_name("sets", name, FILES) for name in sets if name not in FILES)
    empty = [name for name, rows in sets.items() if not len(rows)]
    raise_if(Problem(name, "0 rows", "the set is empty", "add rows to it, or remove it") for name in empty)


def _loss_columns(
    name: str, rows: Sequence[Question], scored: Mapping[Pair, NDArray[np.float64]]
) -> dict[str, list[Any]]:
    """Return TOFU's metrics of the losses, [rows] each."""
    right = [scored[row.question, row.answer] for row in rows]
    if name == HOLDOUT:  # membership inference only needs the right answers
        return _loss_statistics("avg_gt_loss", "gt", right)
    paraphrased = [scored[row.question, row.paraphrased] for row in rows]
    columns = _loss_statistics("avg_gt_loss", "gt", right)
    columns |= _loss_statistics("avg_paraphrased_loss", "paraphrased", paraphrased)
    if not rows[0].perturbed:
        return columns
    wrong = [[scored[row.question, text] for text in row.perturbed] for row in rows]
    parts = [_loss_statistics("average_perturb_loss", "perturb", row) for row in wrong]
    columns |= {metric: [part[metric] for part in parts] for metric in parts[0]}
    perturbed = columns["average_perturb_loss"]
    # TOFU's logs have the truth ratio with the geometric mean.
    columns["truth_ratio"] = metrics.truth_ratio(columns["avg_paraphrased_loss"], perturbed, "geometric").tolist()
    if name in GENERAL_SETS:
        columns["normalized_gt_loss"] = metrics.normalised_nll(columns["avg_gt_loss"], perturbed).tolist()
    return columns


def _loss_statistics(average: str, name: str, losses: Sequence[NDArray[np.float64]]) -> dict[str, list[Any]]:
    """Return mean, sum and number of the token losses of each text, under TOFU's names. `average` names the mean."""
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
    """Return columns that TOFU's logs lack: the text of each labelled token, and the scores in `token_columns`."""
    from unlora.evals.generation import labelled_texts
    from unlora.models.generation import decode

    pairs = [(row.question, row.answer) for row in rows]
    labels = [[label for label in example_of[pair]["labels"] if label >= 0] for pair in pairs]
    sizes = [zlib_size(decode(part, text_format.tokenizer)) for part in labels]
    return {
        "gt_tokens": [labelled_texts(example_of[pair], text_format.tokenizer) for pair in pairs],
        **token_columns([tokens[pair] for pair in pairs], sizes),
    }


def _text_columns(
    name: str, rows: Sequence[Question], generated: Mapping[Asked, str], text_format: TextFormat
) -> dict[str, list[Any]]:
    """Return [prompt, generated answer, right answer] of each row, and ROUGE between the two answers.

    For a chat, "turns" has the prompt without the template's markup, as [role, text] of each turn.
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
