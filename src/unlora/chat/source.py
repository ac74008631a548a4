"""What the page shows: the two models of a run, and questions from its forget and retain set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlora.chat.answers import SideBySide
from unlora.common.errors import InputError
from unlora.data import TextFormat
from unlora.data.sources import Record, has_keys
from unlora.models.load import load_adapter, load_model
from unlora.pipeline.attack import Target, evaluated_rows
from unlora.pipeline.prepare import usable_length
from unlora.runs.folder import ADAPTER
from unlora.settings import ChatConfig

_SETS = ("forget", "retain")


@dataclass(frozen=True)
class Prompt:
    """A question and its answer in the data."""

    question: str
    answer: str


@dataclass(frozen=True)
class Prompts:
    """The questions by set, each once, and by set the reason why it has none."""

    sets: dict[str, list[Prompt]]
    missing: dict[str, str]


def load_side_by_side(target: Target, config: ChatConfig | None = None) -> SideBySide:
    """Load the original model with the run's exported adapter, which includes those of earlier requests.

    Args:
        target: the run.
        config: how long questions and answers may be. Defaults to `ChatConfig`'s own limits.

    Raises:
        InputError: the model or the adapter cannot be loaded.
    """
    model, tokenizer = load_model(target.model)
    text_format = TextFormat.of(tokenizer, target.data, usable_length(model, target.data.max_length))
    adapted, limits = load_adapter(model, str(Path(target.run) / ADAPTER), argument="RUN"), config or ChatConfig()
    return SideBySide(adapted, text_format, limits.max_tokens, limits.max_seconds)


def load_prompts(target: Target) -> Prompts:
    """Return the questions of the evaluated rows. The page is useful without them, so this does not raise."""
    sets: dict[str, list[Prompt]] = {}
    missing = {}
    for name in _SETS:
        try:
            sets[name] = prompts_of(evaluated_rows(target, name))
        except InputError as error:
            missing[name] = str(error)
            continue
        if not sets[name]:
            missing[name] = "its rows are not questions and answers"
    return Prompts({name: found for name, found in sets.items() if found}, missing)


def prompts_of(rows: Sequence[Record]) -> list[Prompt]:
    """Return question and answer of each row: its columns, or the first two turns of its conversation."""
    found = []
    for row in rows:
        if has_keys(row, "question", "answer"):
            found.append(Prompt(str(row["question"]), str(row["answer"])))
        elif has_keys(row, "messages") and [turn["role"] for turn in row["messages"][:2]] == ["user", "assistant"]:
            found.append(Prompt(*(str(turn["content"]) for turn in row["messages"][:2])))
    return list(dict.fromkeys(found))
