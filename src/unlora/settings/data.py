"""Which data is used, and how its rows become tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlora.common.errors import Problem
from unlora.settings.checks import at_least, choice_problems, missing, number_problems
from unlora.settings.setting import setting

_PROMPT_FORMATS = ("auto", "base", "tofu", "chat")
_SOURCE = "a file, a folder or a dataset on the Hugging Face Hub"
UNSEEN = f"Rows like those of the forget set that the model has never seen: {_SOURCE}."
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

    def problems(self) -> list[Problem]:
        """Check everything that needs no data."""
        return [*choice_problems(self, {"prompt_format": _PROMPT_FORMATS}), *number_problems(self, _RANGES)]


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
    """The holdout set: unseen data like the forget set."""

    holdout_data: str | None = setting(None, UNSEEN)
    holdout_name: str | None = _configuration("holdout10")
    holdout_split: str = _split()


@dataclass
class DataConfig(RetainData, ForgetData, TextConfig):
    """What to forget and what to keep."""

    alternate_key: str | None = setting(
        None,
        "Column of the forget rows with the answer to give instead, for the losses idk and dpo. Defaults to built-in "
        "refusals.",
    )
    forget_names: list[str] | None = setting(
        None, "Whom the forget set is about, for teachers that change names. Detected if not given."
    )
    streaming: bool = setting(False, "Stream the retain set, and read only as much of it as the run can use.")
    shuffle_buffer_size: int = setting(
        10_000, "With streaming: number of rows in memory, among which the next one is drawn."
    )
    max_chunks: int | None = setting(
        None, "Maximum number of chunks of a plain text, from its beginning. Defaults to all."
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
