"""Next steps after a run: what would settle an open verdict, and what to change if hardly anything was forgotten."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unlora.report.read import Run
from unlora.report.summary import Summary
from unlora.report.unseen import rows_that_settle
from unlora.runs.command import repeat_command, shown_folder
from unlora.runs.folder import saved_settings
from unlora.settings import UnlearnSettings
from unlora.settings.training import AGREEMENT, PUSHING

# A run has forgotten hardly anything if more than this share of what should be gone is still there.
_HARDLY_FORGOTTEN = 0.75
# If the original is ahead of the retrained model by no more than this, there is nothing to forget by that measure.
_LEAST_DIFFERENCE = 0.1
# The factor on learning rate and epochs that is suggested if the training changed too little.
_FACTOR = 3


@dataclass(frozen=True)
class Step:
    """Something to do next.

    Args:
        text: the reason, and what to replace in the command.
        command: a complete command, to be run in the folder where the run was started.
    """

    text: str
    command: str


@dataclass(frozen=True)
class Place:
    """How commands name the run and its data.

    Args:
        run: path of the run's folder.
        settings: the run's settings.
    """

    run: str
    settings: Mapping[str, Any]

    @classmethod
    def on_page(cls, run: Run) -> Place:
        """Return the names for a page, which must not reveal the folders of the machine that it was made on."""
        return cls(shown_folder(run.folder), run.settings)

    @classmethod
    def here(cls, run: Run) -> Place:
        """Return the names for the user's terminal: the real paths."""
        return cls(str(run.folder), saved_settings(run.folder, "RUN") if run.settings else {})


def hardly_forgotten(summary: Summary) -> bool:
    """Return whether most of what should be gone is still there, by every measure that the run has.

    There are two measures: the probability of the forget answers, and the share of answers that reveal the fact. What
    should be gone is the difference between the original and the retrained model. Without a retrained model, it is the
    original's whole value.
    """
    return bool(left := list(_shares_left(summary))) and min(left) > _HARDLY_FORGOTTEN


def _shares_left(summary: Summary) -> Iterator[float]:
    """Yield, for each measure, the share of what should be gone that is still there."""
    counts = summary.counts.get("given_away", {}).get("forget", {})
    revealed = {model: count.count / count.of for model, count in counts.items()}
    means = summary.means.get("forget", {}).get("probability", {})
    for values in ({model: mean.value for model, mean in means.items()}, revealed):
        if {"original", "unlearned"} <= values.keys():
            goal = values.get("retrained", 0.0)
            if values["original"] - goal > _LEAST_DIFFERENCE:
                yield (values["unlearned"] - goal) / (values["original"] - goal)


def next_steps(run: Run, summary: Summary, state: str, place: Place) -> list[Step]:
    """Return what to do next: first what to change, then what would settle an open verdict.

    Args:
        run: a finished run.
        summary: its numbers.
        state: the state of its verdict.
        place: how commands name the run and its data.
    """
    steps = [_change(run, place)] if hardly_forgotten(summary) else []
    if "retrained" not in run.logs and "retrained" not in run.readings and state in ("untested", "undecided"):
        steps.append(_compare_with_unseen(run, summary, place))
    return steps


def follow_ups(run: Run, place: Place) -> list[Step]:
    """Return what is worth doing with a run that needs no changes: attack it, chat with it, publish it."""
    name = shlex.quote(place.run)
    steps = [Step("Ask the original and the unlearned model yourself.", f"unlora chat {name}")]
    if run.attacks is None:
        model = " --retrained MODEL" if "retrained" in run.logs or "retrained" in run.readings else ""
        attack = f"unlora attack {name}{model} && unlora report {name}"
        return [Step("Let attacks try to bring the data back.", attack), *steps]
    return [*steps, Step("Publish the adapter with a model card.", f"unlora export {name} --output_dir ADAPTER")]


def _change(run: Run, place: Place) -> Step:
    """Return what to change if hardly anything was forgotten."""
    text, flags = _stronger_training(run)
    return Step(text, f"{repeat_command(run.folder, place.run)} {flags}")


def _stronger_training(run: Run) -> tuple[str, str]:
    """Return the reason why the training changed so little, and flags that make it change more."""
    steps = [row["step"] for row in run.train if "step" in row]
    updates = f"{int(max(steps))} update{'' if max(steps) == 1 else 's'}" if steps else "the training"
    rate = float(run.settings.get("learning_rate") or PUSHING["learning_rate"])
    faster = f"--learning_rate {_FACTOR * rate:.2g}"
    excess = [row["teacher_excess"] for row in run.train if "teacher_excess" in row]
    if excess and excess[-1] <= AGREEMENT:
        reason = "The model agrees with its teacher, so the teacher finds these answers likely, too."
        return f"{reason} Name everybody whom the rows are about, in place of NAME.", "--forget_names NAME"
    if excess:
        reason = f"After {updates}, the model does not agree with its teacher yet."
        return f"{reason} A higher learning rate gets further.", faster
    few = f"After {updates}, this loss has changed too little."
    if run.settings.get("alternate_key") is not None:
        epochs = float(run.settings.get("num_train_epochs", UnlearnSettings.num_train_epochs))
        longer = f"{faster} --num_train_epochs {_FACTOR * epochs:g} --max_steps -1"
        return f"{few} Train longer, and with a higher learning rate.", longer
    teacher = "The loss distil trains until the model agrees with a teacher that does not know the facts"
    own = " --loss_kwargs {}" if run.settings.get("loss_kwargs") else ""
    flags = f"--init lora --loss distil --until_taught true --max_steps -1{own}"
    return f"{few} {teacher}, however few rows there are.", flags


def _compare_with_unseen(run: Run, summary: Summary, place: Place) -> Step:
    """Return the step that compares the forget set with unseen rows, with the number of rows that this takes."""
    rows = _forget_rows(run, summary)
    needed = None if rows is None else rows_that_settle(rows)
    names = ("forget_data", "forget_name", "forget_split")
    named = {name: value for name in names if (value := place.settings.get(name)) not in (None, "train")}
    data = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in named.items())
    command = f"unlora membership --on {shlex.quote(place.run)} {data} --holdout_data UNSEEN.jsonl"
    if rows is None:
        known = "Rows like those of the forget set that the model never saw would tell, in UNSEEN.jsonl"
    elif needed is None:
        known = (
            f"{rows} forget rows are too few for a test, however many unseen rows there are: six would need "
            f"{rows_that_settle(6)}. Unseen rows still show whether the forget set stands out, in UNSEEN.jsonl"
        )
    else:
        known = (
            f"At least {needed} rows like the {rows} of the forget set, which the model never saw, would tell whether "
            "half of what was known is still known. Write them to UNSEEN.jsonl"
        )
    return Step(f"{known}.", f"{command} && unlora report {shlex.quote(place.run)}")


def _forget_rows(run: Run, summary: Summary) -> int | None:
    """Return the number of evaluated forget rows, or else that of all forget rows in the record, if it is known."""
    recorded = run.record.get("data", {}).get("forget", {}).get("rows")
    return summary.examples.get("forget", recorded if isinstance(recorded, int) else None)
