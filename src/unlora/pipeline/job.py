"""The state that the stages of a request share: its settings, model, data and folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from unlora.common.distributed import on_main
from unlora.common.files import remove
from unlora.data import Asked, Example, TextFormat
from unlora.data.sources import Record
from unlora.evals import Log
from unlora.pipeline.request import Request
from unlora.runs.stages import Stages
from unlora.settings import ModelConfig
from unlora.teachers import Taught
from unlora.training.stopping import UnseenTest


@dataclass(frozen=True)
class Rows:
    """The rows of a request's sets.

    Args:
        forget, retain: all rows, as they were read. The record has their hashes.
        used_forget, used_retain: the rows that are used: long enough and, in the retain set, not set aside.
        alternates: other answers to the questions in `used_forget`, if the loss reads them.
        holdout: rows that the model never saw, if they decide when training stops.
        set_aside: retain rows that are evaluated but not trained on. Empty if the set is too small to spare any.
    """

    forget: Sequence[Record]
    retain: Sequence[Record]
    used_forget: Sequence[Record]
    used_retain: Sequence[Record]
    alternates: Sequence[tuple[Asked, str]] | None = None
    holdout: Sequence[Record] | None = None
    set_aside: Sequence[Record] = ()


@dataclass(frozen=True)
class Job:
    """The state that the stages of a request share.

    Args:
        request: all settings.
        model: the original model, with the adapters of earlier requests if there are any.
        text_format: how rows are tokenised.
        rows: the rows of the sets.
        forget, retain: the tokenised sets.
        sets: {set: its evaluated rows}.
        alternates: other answers to the forget set's questions, tokenised, if the loss reads them.
        unseen: the test that stops the training, if there is one.
        original_log, retrained_log: evaluation logs that the user provides.
        retrained_model: how the retrained model is loaded, if the user provides it instead of its log.
        taught: examples with the teacher's predictions, of the forget set and others, if the loss distils a teacher.
        stages: the finished stages in the folder of the run, while the job holds its lock.
    """

    request: Request
    model: PreTrainedModel
    text_format: TextFormat
    rows: Rows
    forget: Sequence[Example]
    retain: Sequence[Example]
    sets: Mapping[str, Sequence[Record]]
    alternates: Sequence[Example] | None = None
    unseen: UnseenTest | None = None
    original_log: Log | None = None
    retrained_log: Log | None = None
    retrained_model: ModelConfig | None = None
    taught: Sequence[Taught] | None = None
    stages: Stages | None = None

    @property
    def trained(self) -> Sequence[Example]:
        """The examples that the forget loss reads."""
        return self.forget if self.taught is None else [one.example for one in self.taught]

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.request.args.output_dir)

    def is_finished(self, name: str) -> bool:
        """Return whether the stage that writes this file or folder is finished. All processes must call this."""
        stages = self.stages
        return on_main(lambda: stages is not None and stages.is_finished(name))

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Let the main process write the file or folder of a stage, and note that the stage is finished.

        All processes must call this.

        Args:
            name: name of the file or folder.
            write: called with its path, where the remains of an earlier attempt have been removed.
        """

        def write_and_note() -> None:
            remove(self.folder / name)
            write(self.folder / name)
            if self.stages is not None:
                self.stages.finish(name)

        on_main(write_and_note)
