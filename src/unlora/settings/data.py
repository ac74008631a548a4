"""Which data, and how its rows become tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from unlora.common.errors import Problem
from unlora.settings.checks import below, missing, not_among

PROMPT_FORMATS = ("auto", "base", "tofu", "chat")
NO_DATASET = ("no dataset is named", "give a file, a folder or a dataset on the Hub")


@dataclass
class TextConfig:
    """How records become tokens."""

    prompt_format: str = field(
        default="auto",
        metadata={
            "help": "base ('Question: ... Answer: ...'), tofu (the same, but 'Answer:' counts as part of the answer), "
            "chat (the tokenizer's template), or auto."
        },
    )
    max_length: int = field(
        default=512, metadata={"help": "Most tokens of an example. Plain text is split into chunks of this length."}
    )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        return [
            *not_among(self, {"prompt_format": PROMPT_FORMATS}),
            *below(self, {"max_length": 2}, "nothing could be predicted"),
        ]


@dataclass
class DataConfig(TextConfig):
    """What to forget and what to keep. Each set is a file, a folder of `<name>.jsonl`, or a dataset on the Hub."""

    forget_data: str = field(
        default="", metadata={"help": "The forget set: a file, a folder or a dataset on the Hub. Required."}
    )
    forget_name: str | None = field(default=None, metadata={"help": "Its configuration, such as forget10."})
    forget_split: str = field(default="train", metadata={"help": "Its split. Slices such as train[:40] work."})
    alternate_key: str | None = field(
        default=None,
        metadata={
            "help": "Column of the forget rows that holds the answer to give instead, for idk and dpo. "
            "Built-in refusals if not given."
        },
    )
    retain_data: str = field(
        default="", metadata={"help": "The retain set: a file, a folder or a dataset on the Hub. Required."}
    )
    retain_name: str | None = field(default=None, metadata={"help": "Its configuration, such as retain90."})
    retain_split: str = field(default="train", metadata={"help": "Its split. Slices such as train[:160] work."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Stream the retain set, and read only as much of it as the run can use."},
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "Rows of the stream among which the next one is drawn (with streaming)."}
    )
    max_chunks: int | None = field(
        default=None, metadata={"help": "Chunks of a plain text to use, from its beginning. All if not given."}
    )
    min_characters: int = field(
        default=0, metadata={"help": "Skip plain texts with fewer characters, such as headings."}
    )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        return [
            *super().problems(),
            *missing(self, ("forget_data", "retain_data"), *NO_DATASET),
            *below(self, {"max_chunks": 1}, "no text would be left"),
            *below(self, {"min_characters": 0}, "no text is that short"),
            *below(self, {"shuffle_buffer_size": 1}, "there would be no rows to draw from"),
        ]


@dataclass
class TrainDataConfig(TextConfig):
    """What to fine-tune on."""

    train_data: str = field(default="", metadata={"help": "A file, a folder or a dataset on the Hub. Required."})
    train_name: str | None = field(default=None, metadata={"help": "Its configuration, such as full."})
    train_split: str = field(default="train", metadata={"help": "Its split. Slices such as train[:160] work."})

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        return [*super().problems(), *missing(self, ("train_data",), *NO_DATASET)]
