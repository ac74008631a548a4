"""Which data is used, and how its rows become tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

from unlora.common.errors import Problem
from unlora.settings.checks import at_least, choice_problems, missing, value_problems
from unlora.settings.inherited import mapping_problems
from unlora.settings.setting import setting

# Placeholder of the question in a prompt template.
QUESTION = "{question}"
_PROMPT_FORMATS = ("auto", "base", "tofu", "chat")
_SOURCE = "a file, a folder or a dataset on the Hugging Face Hub"
UNSEEN = f"Rows like those of the forget set that the model has never seen: {_SOURCE}."
# Variables of a chat template that the user cannot set.
_RESERVED = {"messages", "conversations", "tools", "documents", "chat_template", "add_generation_prompt"}
_RESERVED |= {"continue_final_message", "return_assistant_tokens_mask", "strftime_now"}
_NO_DATASET = ("no dataset is named", f"name {_SOURCE}")
_RANGES = {
    "max_length": at_least(2, "nothing could be predicted"),
    "shuffle_buffer_size": at_least(1, "there would be no rows to draw from"),
    "max_chunks": at_least(1, "no text would be left"),
    "min_characters": at_least(0, "no text is that short"),
}


def _configuration(example: str) -> Any:
    return setting(None, f"Configuration of that dataset, such as {example}.")


def _split() -> Any:
    return setting("train", "Split of that dataset. Slices such as train[:40] work.")


@dataclass
class TextConfig:
    """How rows become tokens."""

    prompt_format: str = setting(
        "auto",
        "base ('Question: ... Answer: ...'), tofu (the same, but 'Answer:' counts as part of the answer), chat (the "
        "tokenizer's template), or auto (chat if the tokenizer has a template, else base).",
    )
    max_length: int = setting(
        512, "Maximum number of tokens of an example. Plain text is split into chunks of this length."
    )
    system_prompt: str | None = setting(
        None, "System prompt for questions and for conversations without one, for models with a chat template."
    )
    chat_template_kwargs: str | dict[str, Any] | None = setting(
        None,
        "Variables of the chat template as a JSON object. Thinking is off unless enabled here, such as by "
        "'{\"enable_thinking\": true}'.",
    )
    chat_date: str | None = setting(
        None,
        "The date in the prompts of chat templates that have one, as YYYY-MM-DD. By default, templates that ask for "
        "today's date get 2025-04-10, so that results do not depend on the day, and others keep their own date.",
    )

    prompt_template: str | None = setting(
        None,
        "Text before an answer, with {question} in place of the question, such as "
        "'### Instruction: {question} ### Response:'. It replaces prompt_format.",
    )

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        return [
            *choice_problems(self, {"prompt_format": _PROMPT_FORMATS}),
            *value_problems(self, _RANGES),
            *self._variable_problems(),
            *self._date_problems(),
            *self._template_problems(),
        ]

    def template_variables(self) -> dict[str, Any]:
        """Return the variables of the chat template. They must have been checked."""
        given = self.chat_template_kwargs
        return dict(json.loads(given) if isinstance(given, str) else given or {})

    def _variable_problems(self) -> list[Problem]:
        name = "chat_template_kwargs"
        if problems := mapping_problems(name, self.chat_template_kwargs):
            return problems
        taken = _RESERVED.intersection(self.template_variables())
        reason = "unlora itself sets this variable of the template"
        return [Problem(name, one, reason, "remove it") for one in sorted(taken)]

    def _template_problems(self) -> Iterator[Problem]:
        if self.prompt_template is None:
            return
        if self.prompt_template.count(QUESTION) != 1:
            reason = f"it must contain {QUESTION} exactly once"
            yield Problem(
                "prompt_template", self.prompt_template, reason, f"write {QUESTION} where the question belongs"
            )
        given = {name: getattr(self, name) for name in ("system_prompt", "chat_template_kwargs", "chat_date")}
        given["prompt_format"] = self.prompt_format if self.prompt_format != "auto" else None
        for name, value in given.items():
            if value and value != "{}":
                yield Problem(name, value, "prompt_template replaces it", "give only one of them")

    def _date_problems(self) -> list[Problem]:
        try:
            date.fromisoformat(self.chat_date or "2000-01-01")
        except (ValueError, TypeError) as error:
            return [Problem("chat_date", self.chat_date, str(error), "write it as YYYY-MM-DD")]
        return []


@dataclass
class ForgetData:
    """The forget set."""

    forget_data: str = setting("", f"The forget set: {_SOURCE}. Required.")
    forget_name: str | None = _configuration("forget10")
    forget_split: str = _split()


@dataclass
class RetainData:
    """The retain set."""

    retain_data: str = setting("", f"The retain set: {_SOURCE}. Required.")
    retain_name: str | None = _configuration("retain90")
    retain_split: str = _split()


@dataclass
class HoldoutData:
    """The holdout set: unseen data similar to the forget set."""

    holdout_data: str | None = setting(None, UNSEEN)
    holdout_name: str | None = _configuration("holdout10")
    holdout_split: str = _split()


@dataclass
class DataConfig(RetainData, ForgetData, TextConfig):
    """What to forget and what to keep."""

    alternate_key: str | None = setting(
        None,
        "Column of the forget rows with the alternate answer, for the losses idk and dpo. Defaults to built-in "
        "refusals.",
    )
    forget_names: list[str] | None = setting(
        None, "Names of those whom the forget set is about, for teachers that change names. Detected by default."
    )
    streaming: bool = setting(False, "Stream the retain set, and read only as much of it as the run can use.")
    shuffle_buffer_size: int = setting(
        10_000, "With streaming: number of rows held in memory, from which the next row is drawn at random."
    )
    max_chunks: int | None = setting(
        None, "Maximum number of chunks of a plain text, starting with the first. Defaults to all."
    )
    min_characters: int = setting(0, "Skip plain texts with fewer characters, such as headings.")

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        return [*super().problems(), *missing(self, ("forget_data", "retain_data"), *_NO_DATASET)]


@dataclass
class TrainDataConfig(TextConfig):
    """What to fine-tune on."""

    train_data: str = setting("", f"The training data: {_SOURCE}. Required.")
    train_name: str | None = _configuration("full")
    train_split: str = _split()

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        return [*super().problems(), *missing(self, ("train_data",), *_NO_DATASET)]
