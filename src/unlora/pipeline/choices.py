"""Tables of all losses, initialisers, teachers, benchmarks and configurations, for `unlora ls` and docs/methods.md.

Importing this module does not import torch; making the tables of losses and initialisers does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlora.settings.names import BENCHMARKS, INITIALISERS, KINDS, LOSSES, RETAIN_LOSSES, TEACHERS
from unlora.settings.published import published

if TYPE_CHECKING:
    from unlora.benchmarks import Benchmark
    from unlora.importance import Initialiser
    from unlora.losses import Loss

# Input of a loss -> what the original model is run for, and how often.
_REFERENCES = {
    "ref_logp": "reference: log-probabilities, once",
    "ref_logits": "reference: logits, each step",
    "ref_states": "reference: hidden states, each step",
    "lesson": "a teacher's predictions, once",
}
# The direction of a metric in words.
_BETTER = {"high": "higher is better", "low": "lower is better", "zero": "0 is best", None: ""}
_NOTHING = "–"


@dataclass(frozen=True)
class Choices:
    """A table of all choices of one kind.

    Args:
        columns: headings. The first column is the name, the last one the paper.
        rows: the texts of each row, one for each column.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """Return the table as Markdown, with names as code and links to the papers."""
        lines = [self.columns, ("---",) * len(self.columns)]
        for name, *rest, paper in self.rows:
            lines.append((f"`{name}`", *(text.replace("|", "\\|") for text in rest), linked(paper)))
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def linked(paper: str) -> str:
    """Return the citation of a paper with its arXiv number as a link."""
    return re.sub(r"arXiv ([\d.]+\d)", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def all_choices(kinds: Sequence[str] = ()) -> dict[str, Choices]:
    """Return {kind: table} for these kinds, or for all kinds."""
    return {kind: KINDS[kind]() for kind in kinds or KINDS}


def initialisers() -> Choices:
    """Return the table of the initialisers."""
    rows = [
        (name, start.formula, _settings_of_start(start), _needs_of_start(start), start.paper)
        for name, start in INITIALISERS.items()
    ]
    return Choices(("name", "importance of a weight W (out × in)", "settings", "needs", "paper"), rows)


def losses() -> Choices:
    """Return the table of the losses."""
    rows = [
        (name, loss.formula, _listed(loss.settings), _needs_of_loss(loss), loss.retain, loss.paper)
        for name, loss in LOSSES.items()
    ]
    return Choices(("name", "forget loss", "settings", "needs", "retain loss", "paper"), rows)


def teachers() -> Choices:
    """Return the table of the teachers."""
    rows = [(name, teacher.description, teacher.paper) for name, teacher in TEACHERS.items()]
    return Choices(("name", "what the original model reads", "paper"), rows)


def retain_losses() -> Choices:
    """Return the table of the retain losses."""
    rows = [
        (name, loss.formula, _listed(loss.settings), _needs_of_loss(loss), loss.paper)
        for name, loss in RETAIN_LOSSES.items()
    ]
    return Choices(("name", "retain loss", "settings", "needs", "paper"), rows)


def benchmarks() -> Choices:
    """Return the table of the benchmarks."""
    rows = [
        (name, _metrics(b), ", ".join(b.splits), b.needs or _NOTHING, b.paper or _NOTHING)
        for name, b in BENCHMARKS.items()
    ]
    return Choices(("name", "metrics", "splits", "needs", "paper"), rows)


def configurations() -> Choices:
    """Return the table of the published configurations."""
    return Choices(("name", "use"), [(name, one.about) for name, one in published().items()])


def _needs_of_start(start: Initialiser) -> str:
    """Return the data that an initialiser needs."""
    if not start.uses_data:
        return _NOTHING
    return (
        "forget and retain set, at least two examples (or batches) of each"
        if start.centred
        else "forget and retain set"
    )


def _needs_of_loss(loss: Loss) -> str:
    """Return what a loss needs besides the forget answers: alternate answers, passes of the original model."""
    alternates = "alternate answers" if "alternate" in loss.reads else ""
    own = [_REFERENCES[name] for name in loss.inputs if name in _REFERENCES]
    of_retain = RETAIN_LOSSES[loss.retain].inputs if loss.retain in RETAIN_LOSSES else []
    others = [_REFERENCES[name] for name in of_retain if name in _REFERENCES.keys() - loss.inputs]
    return (
        "; ".join(filter(None, (alternates, *own, *(f"{text} (for the retain loss)" for text in others)))) or _NOTHING
    )


def _settings_of_start(start: Initialiser) -> str:
    """Return the settings that an initialiser reads, except those whose default depends on the data or the machine."""
    return _listed({name: value for name, value in start.settings.items() if value is not None})


def _metrics(benchmark: Benchmark) -> str:
    """Return the labels of a benchmark's metrics, each with the direction that is better."""
    labels = (f"{metric.label} ({_BETTER[metric.better]})".removesuffix(" ()") for metric in benchmark.metrics.values())
    return ", ".join(labels) or _NOTHING


def _listed(values: Mapping[str, Any]) -> str:
    """Return settings with their defaults, as they are written on the command line."""
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    return ", ".join(f"{name} = {text}" for name, text in texts.items()) or _NOTHING
