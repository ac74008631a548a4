"""Load rows from a dataset on the Hugging Face Hub, a local folder or a file, and check them.

Local data is read by `files` and `folders`, and `datasets` is used only for the Hub: it treats local paths as patterns,
and infers the types of what it reads.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from unlora.common.errors import InputError, Problem, raise_if, short
from unlora.data.conversations import answers_of, half_character, read_turns, taught, texts_of
from unlora.data.files import READERS, Row, is_saved_dataset, iter_rows
from unlora.data.folders import WHOLE, find_table
from unlora.settings.data import ForgetData, HoldoutData, RetainData, TrainDataConfig

Record = Mapping[str, Any]
logger = logging.getLogger(__name__)
# A dataset's or model's name on the Hub: "name" or "owner/name".
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# Text columns of a row with a question. `perturbed_answer` is a list of texts.
_QUESTION_TEXTS = ("question", "answer", "paraphrased_question", "paraphrased_answer")
# Columns next to `text` that look like its answer or prompt. Without them, the row would have another meaning.
_PARTS = ("answer", "answers", "completion", "label", "labels", "output", "prompt", "question", "response", "target")
# Columns next to a question or a conversation that look like a part of the prompt.
_CONTEXTS = ("context", "instruction", "passage", "system", "system_prompt", "text")
# Required columns of each kind of row.
_KINDS = ({"question", "answer"}, {"messages"}, {"text"})
# Maximum number of problems that an error lists.
_SHOWN = 5


@dataclass(frozen=True)
class Stream:
    """How to draw rows from a dataset whose length is unknown or that does not fit in memory.

    Args:
        rows: the maximum number of rows to draw.
        seed: the seed of their order.
        buffer_size: the size of the shuffle buffer, in rows.
    """

    rows: int
    seed: int
    buffer_size: int


def is_hub_id(path: str) -> bool:
    """Return whether a path that does not exist may be a name on the Hub.

    If there is a local folder "owner", "owner/name" is treated as a path in it, because a request to the Hub takes long
    when it cannot be reached.
    """
    return HUB_ID.fullmatch(path) is not None and not ("/" in path and Path(path).parent.is_dir())


def load_records(
    path: str,
    name: str | None = None,
    split: str | None = None,
    *,
    argument: str = "data",
    stream: Stream | None = None,
) -> list[Record]:
    """Load the rows of one dataset, with any columns.

    Args:
        path: a file (.jsonl, .json, .csv, .parquet), a folder, or a dataset's name on the Hugging Face Hub. A folder
            holds `<name>.jsonl` or, if configurations have several splits, `<name>/<split>.jsonl` (or files of the
            other formats). A clone of a dataset on the Hub is such a folder, and so is what `save_to_disk` wrote.
        name: the configuration. In a folder, the name of a file without its extension, or of a subfolder.
        split: as in `datasets.load_dataset`, including slices such as "train[:160]". Defaults to "train".
        argument: the dataset's name in error messages.
        stream: how to draw only some of the rows. None reads all of them.

    Returns:
        The rows, at least one.

    Raises:
        InputError: there is no such dataset, its format is unknown, it has no rows, or a slice is to be streamed.
    """
    split = split or WHOLE
    if stream is not None and ("[" in split or "+" in split):
        reason, fix = f"split {split!r} cannot be streamed", "name one whole split, or leave out --streaming"
        raise InputError(Problem(argument, path, reason, fix))
    local = Path(path)
    if local.exists():
        rows = _local_rows(local, name, split, argument, stream)
    elif is_hub_id(path) and local.suffix not in READERS:
        rows = _hub_rows(path, name, split, argument, stream)
    else:
        raise InputError(Problem(argument, path, "no such file or folder", "check the path"))
    if not rows:
        reason = "the dataset has no rows" if split == WHOLE else f"its split {split!r} has no rows"
        raise InputError(Problem(argument, path, reason, "give a dataset with at least one row"))
    return rows


def load_set(
    settings: ForgetData | RetainData | HoldoutData | TrainDataConfig,
    name: str,
    stream: Stream | None = None,
    *,
    check: bool = True,
) -> list[Record]:
    """Load the dataset that the settings `<name>_data`, `<name>_name` and `<name>_split` describe.

    Args:
        settings: an object with these three settings, such as `DataConfig` for "forget" and "retain".
        name: the name of the set.
        stream: as for `load_records`.
        check: whether to refuse rows that no model can be trained on.

    Raises:
        InputError: in the same cases as `load_records` and `check_rows`.
    """
    path, configuration, split = (getattr(settings, f"{name}_{part}") for part in ("data", "name", "split"))
    rows = load_records(path, configuration, split, argument=f"{name}_data", stream=stream)
    if check:
        check_rows(rows, f"{name}_data")
    return rows


def _local_rows(path: Path, name: str | None, split: str, argument: str, stream: Stream | None) -> list[Record]:
    """Return the rows of a split, of a slice of it, or of several of them joined by "+"."""
    if path.is_file() and path.suffix not in READERS:
        fix = f"use one of {', '.join(READERS)}"
        raise InputError(Problem(argument, str(path), f"files of type {path.suffix!r} are not read", fix))

    def rows_of(part: str) -> Iterator[Row]:
        whole = path.is_file() or (name is None and is_saved_dataset(path))
        if whole and part != WHOLE:
            reason = f"split {split!r} cannot be read: the dataset's only split is called {WHOLE!r}"
            raise InputError(Problem(argument, str(path), reason, f"use {WHOLE}, or a slice such as {WHOLE}[:40]"))
        for file in [path] if whole else find_table(path, name, part, argument):
            yield from iter_rows(file, argument)

    if stream is not None:
        return _streamed_rows(rows_of, split, stream)
    return _split_rows(split, rows_of, argument, path)


def _streamed_rows(rows_of: Callable[[str], Iterator[Row]], split: str, stream: Stream) -> list[Record]:
    from datasets import IterableDataset

    streamed = IterableDataset.from_generator(rows_of, gen_kwargs={"part": split})
    return list(streamed.shuffle(seed=stream.seed, buffer_size=stream.buffer_size).take(stream.rows))


def _split_rows(split: str, rows_of: Callable[[str], Iterator[Row]], argument: str, path: Path) -> list[Record]:
    from datasets import ReadInstruction

    whole = {name: list(rows_of(name)) for name in dict.fromkeys(part.partition("[")[0] for part in split.split("+"))}
    try:
        parts = ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in whole.items()})
    except (ValueError, AssertionError) as error:
        reason = f"split {split!r} cannot be read: {error}"
        fix = f"write it as {WHOLE}, {WHOLE}[:40] or {WHOLE}[10%:20%]"
        raise InputError(Problem(argument, str(path), reason, fix)) from error
    return [row for part in parts for row in whole[part.splitname][part.from_ : part.to]]


def _hub_rows(path: str, name: str | None, split: str, argument: str, stream: Stream | None) -> list[Record]:
    import datasets

    try:
        if stream is None:
            return list(datasets.load_dataset(path, name, split=split))
        rows = datasets.load_dataset(path, name, split=split, streaming=True)
        return list(rows.shuffle(seed=stream.seed, buffer_size=stream.buffer_size).take(stream.rows))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = f"it is no local path and cannot be loaded from the Hub ({type(error).__name__}: {error})"
        raise InputError(Problem(argument, path, reason, "check the path, the hub name, or the network")) from error


def check_rows(rows: Sequence[Record], argument: str) -> None:
    """Check that rows are questions, conversations or plain texts, and that their text columns contain text.

    A warning names unread columns that look like a part of the prompt.

    Raises:
        InputError: a row is of no such kind, or a text column contains something else.
    """
    problems = (problem for place, row in enumerate(rows) for problem in _row_problems(row, f"{argument}[{place}]"))
    raise_if(islice(problems, _SHOWN))
    unread = sorted({name for row in rows for name in _unread_columns(row)})
    if unread:
        logger.warning("%s: the columns %s are not read", argument, ", ".join(unread))


def _row_problems(row: Record, where: str) -> Iterator[Problem]:
    if has_keys(row, "question", "answer"):
        for key in _QUESTION_TEXTS:
            yield from _text_problems(row.get(key), where, key)
        yield from _wrong_answer_problems(row.get("perturbed_answer"), where)
    elif has_keys(row, "messages"):
        yield from _message_problems(row, where)
    elif has_keys(row, "text"):
        yield from _text_problems(row["text"], where, "text")
        for key in _PARTS:
            if isinstance(row.get(key), str):
                reason = "only the column text would be read"
                yield Problem(
                    f"{where}.{key}", short(row[key]), reason, "rename text and this column to question and answer"
                )
    else:
        yield _unknown_kind(row, where)


def _unknown_kind(row: Record, where: str) -> Problem:
    """Return the problem of a row that is not a question, conversation or plain text."""
    for keys in _KINDS:
        if keys <= row.keys():
            key = next(key for key in sorted(keys) if row[key] is None)
            return Problem(f"{where}.{key}", None, "there is no text", "write it, or remove the row")
    names = sorted(map(str, row))
    if len(names) == 1 and (odd := next((sign for sign in ";\t|" if sign in names[0]), None)):
        return Problem(where, names, f"its columns are separated by {odd!r}", "separate them by commas")
    reason = "a row needs the keys question and answer, or messages, or text"
    return Problem(where, names, reason, "rename the columns")


def _text_problems(value: object, where: str, key: str) -> Iterator[Problem]:
    if value is not None and not isinstance(value, str):
        fix = "choose one of its texts" if isinstance(value, list | dict) else "write it in quotes, as a text"
        yield Problem(f"{where}.{key}", short(value), f"it is of type {type(value).__name__}, not a text", fix)
    elif value is not None and (half := half_character(value)):
        yield Problem(f"{where}.{key}", short(value), *half)


def _wrong_answer_problems(value: object, where: str) -> Iterator[Problem]:
    if isinstance(value, list | None):
        for place, answer in enumerate(value or ()):
            yield from _text_problems(answer, where, f"perturbed_answer[{place}]")
    else:
        reason = f"it is of type {type(value).__name__}, not a list of texts"
        yield Problem(f"{where}.perturbed_answer", short(value), reason, "write a list of wrong answers")


def _message_problems(row: Record, where: str) -> Iterator[Problem]:
    try:
        answers_of(row, where)
    except InputError as error:
        yield from error.problems


def _unread_columns(row: Record) -> Iterator[str]:
    """Yield unread text columns without which the row may have another meaning."""
    if has_keys(row, "question", "answer") or has_keys(row, "messages"):
        yield from (name for name in _CONTEXTS if isinstance(row.get(name), str))
    else:
        yield from (name for name, value in row.items() if name != "text" and isinstance(value, str))


def has_keys(row: Record, *keys: str) -> bool:
    """Return whether the row has all keys. None counts as missing, because tables fill missing values with it."""
    return all(row.get(key) is not None for key in keys)


def questions_of(rows: Iterable[Record]) -> list[str]:
    """Return the distinct questions in the rows, including the user turns of conversations."""
    turns = (turn for row in rows if has_keys(row, "messages") for turn in read_turns(row["messages"]))
    said = [turn["content"] for turn in turns if turn["role"] == "user"]
    asked = [row["question"] for row in rows if has_keys(row, "question")]
    return list(dict.fromkeys(str(question) for question in [*asked, *said] if question))


def row_text(row: Record) -> str:
    """Return everything that a model reads of a row, as one text."""
    if has_keys(row, "question", "answer"):
        return f"{row['question']}\n{row['answer']}"
    if has_keys(row, "messages"):
        return "\n".join(text for turn in read_turns(row["messages"]) for text in texts_of(turn))
    return str(row["text"])


def is_text(row: Record) -> bool:
    """Return whether the row is plain text, and not a question or conversation with an additional text column."""
    return has_keys(row, "text") and not has_keys(row, "question", "answer") and not has_keys(row, "messages")


def without_short_texts(rows: Sequence[Record], min_characters: int, argument: str = "data") -> list[Record]:
    """Drop plain texts with fewer than `min_characters` characters. Questions and conversations are kept.

    Raises:
        InputError: no row is left.
    """
    kept = [row for row in rows if not is_text(row) or len(str(row["text"])) >= min_characters]
    if not kept:
        reason = f"none of the {len(rows)} texts in {argument} is that long"
        raise InputError(Problem("min_characters", min_characters, reason, "use a lower number"))
    return kept


def check_overlap(
    one: Iterable[Record], other: Iterable[Record], names: tuple[str, str] = ("forget", "retain")
) -> None:
    """Raise `InputError` if the two sets share rows, for which the forget and the retain loss would conflict."""
    known = {fingerprint(row) for row in other}
    rows = [fingerprint(row) for row in one]
    shared = sum(row in known for row in rows)
    if shared:
        reason = f"{shared} of the {len(rows)} {names[0]} rows are in the {names[1]} set too"
        fix = f"remove those rows from the {names[1]} set"
        raise InputError(Problem(f"{names[1]}_data", f"{len(known)} distinct rows", reason, fix))


def fingerprint(row: Record) -> str:
    """Return what a row teaches as a string. Columns that are not learned from are ignored."""
    if has_keys(row, "question", "answer"):
        return json.dumps([str(row["question"]).strip(), str(row["answer"]).strip()])
    turns = taught(row["messages"]) if has_keys(row, "messages") else None
    return json.dumps([turns, row.get("text")], sort_keys=True)
