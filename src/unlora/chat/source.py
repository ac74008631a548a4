"""The contents of the page: the two models of a run, and questions from its forget and retain set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlora.chat.answers import SideBySide
from unlora.common.errors import InputError
from unlora.data import Asked, Context, TextFormat
from unlora.data.conversations import all_answers
from unlora.data.sources import Record
from unlora.models.load import load_adapter, load_model
from unlora.pipeline.attack import Target, evaluated_rows
from unlora.runs.folder import ADAPTER
from unlora.settings import ChatConfig, ModelConfig
from unlora.settings.data import TextConfig

_SETS = ("forget", "retain")


@dataclass(frozen=True)
class Prompt:
    """A question and its answer in the data.

    Args:
        question: its text; empty if the last turn before the answer is not the user's.
        answer: the text of the answer.
        earlier: the turns before the question, if there are any.
    """

    question: str
    answer: str
    earlier: Context | None = None

    @classmethod
    def of(cls, asked: Asked, answer: str) -> Prompt:
        """Split a prompt into the question and the turns before it."""
        if isinstance(asked, str):
            return cls(asked, answer)
        *before, last = asked.turns or [{"role": "", "content": ""}]
        if last["role"] != "user":
            return cls("", answer, asked)
        beside = before or asked.tools or asked.beside
        return cls(last["content"], answer, Context.of(before, asked.tools, asked.beside) if beside else None)

    @property
    def label(self) -> str:
        """The text for a list of prompts."""
        turns = self.earlier.shown() if self.earlier else []
        return self.question or (f"({turns[-1][0]}) {turns[-1][1]}" if turns else "(the assistant begins)")


def asked_after(earlier: Context | None, question: str) -> Asked:
    """Append a question to the turns of a conversation. Without a question, the assistant continues these turns."""
    if earlier is None:
        return question
    turns = [*earlier.turns, {"role": "user", "content": question}] if question.strip() else earlier.turns
    return Context.of(turns, earlier.tools, earlier.beside)


@dataclass(frozen=True)
class Prompts:
    """{set: its questions, without duplicates}, and {set: reason why it has no questions}."""

    sets: dict[str, list[Prompt]]
    missing: dict[str, str]


@dataclass(frozen=True)
class About:
    """A description of the models on the page.

    Args:
        base: name of the original model.
        adapter: name of the run or folder that the adapter is from.
        max_new_tokens: the default maximum length of an answer.
        note: a sentence on where the page is served.
    """

    base: str
    adapter: str
    max_new_tokens: int
    note: str = "Nothing leaves this computer."

    @classmethod
    def of(cls, target: Target) -> About:
        """Return the description of a run on this computer."""
        return cls(target.model.model_name_or_path, target.run, target.evaluation.max_new_tokens)


def load_side_by_side(target: Target, config: ChatConfig | None = None) -> SideBySide:
    """Load the original model with the run's exported adapter, which includes those of earlier requests.

    Args:
        target: the run.
        config: the limits on questions and answers. Defaults to those of `ChatConfig`.

    Raises:
        InputError: the model or the adapter cannot be loaded.
    """
    return load_models(target.model, target.data, Path(target.run) / ADAPTER, config)


def load_models(base: ModelConfig, text: TextConfig, adapter: Path, config: ChatConfig | None = None) -> SideBySide:
    """Load a base model with an adapter. The arguments and errors are as for `load_side_by_side`."""
    model, tokenizer = load_model(base)
    text_format = TextFormat.of(tokenizer, text, model.config)
    adapted, limits = load_adapter(model, str(adapter), argument="RUN"), config or ChatConfig()
    return SideBySide(adapted, text_format, limits.max_tokens, limits.max_seconds)


def load_prompts(target: Target) -> Prompts:
    """Return the questions in the evaluated rows. Unreadable rows are not an error: the page works without them."""
    sets: dict[str, list[Prompt]] = {}
    missing = {}
    for name in _SETS:
        try:
            sets[name] = prompts_of(evaluated_rows(target, name))
        except InputError as error:
            missing[name] = str(error)
            continue
        if not sets[name]:
            missing[name] = "its rows are plain text, without questions or conversations"
    return Prompts({name: found for name, found in sets.items() if found}, missing)


def prompts_of(rows: Sequence[Record]) -> list[Prompt]:
    """Return a prompt for every answer and every turn of the assistant in the rows, without duplicates."""
    return list(dict.fromkeys(Prompt.of(one.asked, one.answer) for one in all_answers(rows, "row")))
