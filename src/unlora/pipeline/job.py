"""What the stages of a request work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlora.data import Example, TextFormat
from unlora.data.sources import Record
from unlora.evals import Log
from unlora.pipeline.request import Request
from unlora.training.stopping import UnseenTest


@dataclass(frozen=True)
class Job:
    """What the stages of a request work on.

    Args:
        request: all settings.
        model: the model before unlearning.
        text_format: how rows become tokens.
        forget_rows, retain_rows: the sets as they were read; the record has their hashes.
        used_forget_rows: those of them that are long enough to be used.
        forget, retain: the sets, tokenised.
        sets: what is evaluated, by set name.
        alternates: other answers to the forget set's questions, if the loss reads them.
        unseen: the test that stops the training, if there is one.
        original_log, retrained_log: evaluation logs that the user already has.
    """

    request: Request
    model: Any
    text_format: TextFormat
    forget_rows: Sequence[Record]
    retain_rows: Sequence[Record]
    used_forget_rows: Sequence[Record]
    forget: Sequence[Example]
    retain: Sequence[Example]
    sets: Mapping[str, Sequence[Record]]
    alternates: Sequence[Example] | None = None
    unseen: UnseenTest | None = None
    original_log: Log | None = None
    retrained_log: Log | None = None

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.request.args.output_dir)
