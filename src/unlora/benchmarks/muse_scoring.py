"""Evaluate a model on the sets of MUSE, with the prompts, maximum lengths and truncation of MUSE's released code."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from unlora.common.errors import Problem, raise_if
from unlora.evals.membership.leakage import Scores, leakage_scores
from unlora.evals.metrics import rouge_l_f1, warn_of_wordless
from unlora.evals.progress import Progress, continued

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from unlora.data import Example, TextFormat
    from unlora.data.sources import Record

logger = logging.getLogger(__name__)
Sets = Mapping[str, "Sequence[Record]"]

# Set -> configuration and split on the Hub, and the columns of its rows.
_SOURCES = {
    "verbmem": ("verbmem", "forget", ("prompt", "gt")),
    "forget_qa": ("knowmem", "forget_qa", ("question", "answer")),
    "forget_qa_icl": ("knowmem", "forget_qa_icl", ("question", "answer")),
    "retain_qa": ("knowmem", "retain_qa", ("question", "answer")),
    "retain_qa_icl": ("knowmem", "retain_qa_icl", ("question", "answer")),
    "forget": ("privleak", "forget", ("text",)),
    "holdout": ("privleak", "holdout", ("text",)),
}
NEW_TOKENS = {"verbmem": 128, "forget_qa": 32, "retain_qa": 32}
# Where the model begins another question, its answer is cut.
_ANSWER_END = re.compile("\n\n|\nQuestion|Question:")


def load_muse(path: str, ds_size: int | None = None) -> dict[str, list[Record]]:
    """Load the sets for C1 to C4, from the Hub ("muse-bench/MUSE-News") or a folder of `<config>/<split>.jsonl`.

    Args:
        path: the name on the Hub, or the folder.
        ds_size: maximum number of rows of each set, from the first; None for all. The question/answer pairs that are
            shown in context are always used in full.

    Raises:
        InputError: a set cannot be read, a column is missing or empty, or a text is in both privleak sets.
    """
    from unlora.data import check_overlap, load_records

    sets = {}
    for name, (config, split, columns) in _SOURCES.items():
        rows = load_records(path, config, split, argument=f"data ({config}, {split})")
        _check_columns(f"{config}.{split}", rows, columns)
        sets[name] = rows if name.endswith("_icl") else rows[:ds_size]
    check_overlap(sets["forget"], sets["holdout"], names=("forget", "holdout"))
    return sets


def _check_columns(name: str, rows: Sequence[Record], columns: Sequence[str]) -> None:
    """Raise `InputError` for rows in which one of the columns is not a text or is empty."""
    reason, fix = "it must be a non-empty text", f"give every row of {name} {' and '.join(columns)}"
    raise_if(
        Problem(f"{name}[{place}].{column}", row.get(column), reason, fix)
        for place, row in enumerate(rows)
        for column in columns
        if not (isinstance(row.get(column), str) and row[column].strip())
    )


def knowledge_prompt(question: str, pairs: Sequence[Record]) -> str:
    """Return the prompt for C2 and C4: question/answer pairs as examples in context, and then the question.

    It ends with a space after "Answer:", as in MUSE's code.
    """
    context = "".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}\n\n" for pair in pairs)
    return f"{context}Question: {question}\nAnswer: "


def cut_answer(text: str) -> str:
    """Return the text up to where the model begins another question."""
    return _ANSWER_END.split(text, maxsplit=1)[0]


def evaluate_muse(
    model: PreTrainedModel,
    sets: Sets,
    tokenizer: PreTrainedTokenizerFast,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> tuple[Scores, dict[str, list[list[str]]]]:
    """Score the model on all sets.

    Args:
        model: a causal LM, with or without adapters. It is left as it was found.
        sets: what `load_muse` returned.
        tokenizer: a fast tokenizer. The model sees neither its chat template nor an end token.
        batch_size: number of texts in a forward pass.
        progress: called with the number of texts done so far.

    Returns:
        The scores, which are "rougeL" (F1, 0 to 1) for verbmem, forget_qa and retain_qa, and those of `leakage_scores`
        for forget and holdout; and pairs of the generated and the right text for each of the first three sets.

    Raises:
        InputError: a prompt and its continuation need more tokens than the model has positions.
    """
    from unlora.data import TextFormat
    from unlora.data.encoding import encode_text
    from unlora.evals.scoring import check_positions, position_limit
    from unlora.models.generation import prompt_example

    limit = position_limit(model)
    text_format = TextFormat(tokenizer, "base", limit or TextFormat.max_length)
    prompts = {name: [encode_text(text, tokenizer) for text in _prompts(name, sets)] for name in NEW_TOKENS}
    for name, new in NEW_TOKENS.items():  # check all sets before any text is generated
        argument = f"data ({', '.join(_SOURCES[name][:2])})"
        check_positions(model, [prompt_example(ids) for ids in prompts[name]], new, argument, len(prompts[name]))
    scores: Scores = {}
    texts = {}
    for name, generated in _generate(model, prompts, text_format, batch_size, progress).items():
        if name != "verbmem":
            generated = [cut_answer(text) for text in generated]
        right = references(name, sets, tokenizer)
        warn_of_wordless(name, right)
        texts[name] = [list(pair) for pair in zip(generated, right, strict=True)]
        scores[name] = {"rougeL": [rouge_l_f1(said, right) for said, right in texts[name]]}
    private = {name: _encode_whole(name, sets[name], tokenizer, limit) for name in ("forget", "holdout")}
    later = continued(progress, sum(map(len, texts.values())))
    scores |= leakage_scores(model, private, text_format, batch_size, progress=later)
    return scores, texts


def _generate(
    model: PreTrainedModel,
    prompts: Mapping[str, Sequence[list[int]]],
    text_format: TextFormat,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, list[str]]:
    """Return the continuations of the prompts by set. Sets with the same number of new tokens share their batches."""
    from unlora.evals.generation import continue_prompts

    generated: dict[str, list[str]] = {}
    for new in dict.fromkeys(NEW_TOKENS.values()):
        names = [name for name, own in NEW_TOKENS.items() if own == new]
        whole = [ids for name in names for ids in prompts[name]]
        later = continued(progress, sum(map(len, generated.values())))
        texts = iter(continue_prompts(model, whole, text_format, new, batch_size, later))
        generated |= {name: list(islice(texts, len(prompts[name]))) for name in names}
    return generated


def text_count(sets: Sets) -> int:
    """Return the number of texts that `evaluate_muse` reports to `progress` in total."""
    return sum(len(sets[name]) for name in (*NEW_TOKENS, "forget", "holdout"))


def _prompts(name: str, sets: Sets) -> list[str]:
    """Return the text that the model continues for each row of the set."""
    if name == "verbmem":
        return [row["prompt"] for row in sets[name]]
    return [knowledge_prompt(row["question"], sets[f"{name}_icl"]) for row in sets[name]]


def references(name: str, sets: Sets, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the right texts: the answers, or the true continuation, cut to the number of tokens that are generated."""
    from unlora.data.encoding import encode_text
    from unlora.models.generation import decode

    if name != "verbmem":
        return [row["answer"] for row in sets[name]]
    return [decode(encode_text(row["gt"], tokenizer)[: NEW_TOKENS[name]], tokenizer) for row in sets[name]]


def _encode_whole(
    name: str, rows: Sequence[Record], tokenizer: PreTrainedTokenizerFast, limit: int | None
) -> list[Example]:
    """Return one example per text, labelled on all tokens, without an end token, and cut to the model's positions."""
    from unlora.data.encoding import encode_text

    tokens = [encode_text(row["text"], tokenizer) for row in rows]
    if limit is not None and (cut := sum(len(ids) > limit for ids in tokens)):
        logger.warning("privleak.%s: %d of %d texts were cut to the model's %d positions", name, cut, len(rows), limit)
    return [{"input_ids": ids[:limit], "labels": ids[:limit]} for ids in tokens]
