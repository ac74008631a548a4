"""What there is to choose from, as tables: the source of `unlora ls` and of the tables in docs/methods.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlora.importance import INITIALISERS, Initialiser
from unlora.losses.table import LOSSES, RETAIN_LOSSES, Loss

# What a loss takes of the original model, and how often that model is run for it.
NEEDS = {
    "ref_logp": "reference: log-probabilities, once",
    "ref_logits": "reference: logits, each step",
    "ref_states": "reference: hidden states, each step",
    "lesson": "a teacher's lessons, once",
}


@dataclass(frozen=True)
class Catalogue:
    """A table of names.

    Args:
        columns: their headings; the first is the name, the last the paper.
        rows: one text for each column.
    """

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """The table in Markdown, with names as code and papers linked."""
        lines = [self.columns, ("---",) * len(self.columns)]
        for name, *rest, paper in self.rows:
            lines.append((f"`{name}`", *(text.replace("|", "\\|") for text in rest), linked(paper)))
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def linked(paper: str) -> str:
    """A paper's citation with its arXiv number linked."""
    return re.sub(r"arXiv ([\d.]+\d)", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)


def catalogues() -> dict[str, Catalogue]:
    """Every kind of choice by its name."""
    return {
        "initialisers": Catalogue(
            ("name", "importance of a weight W (out × in)", "settings", "needs", "paper"),
            [
                (name, start.formula, settings_of_start(start), needs_of_start(start), start.paper)
                for name, start in INITIALISERS.items()
            ],
        ),
        "losses": Catalogue(
            ("name", "forget loss", "settings", "needs", "retain loss", "paper"),
            [
                (name, loss.formula, settings(loss), needs_of_loss(loss), loss.retain, loss.paper)
                for name, loss in LOSSES.items()
            ],
        ),
        "retain_losses": Catalogue(
            ("name", "retain loss", "settings", "needs", "paper"),
            [
                (name, loss.formula, settings(loss), needs_of_loss(loss), loss.paper)
                for name, loss in RETAIN_LOSSES.items()
            ],
        ),
    }


def needs_of_start(start: Initialiser) -> str:
    """What data an initialiser looks at."""
    if not start.uses_data:
        return "–"
    return "forget and retain set; two gradients of each" if start.centred else "forget and retain set"


def needs_of_loss(loss: Loss) -> str:
    """What a loss needs beside the forget answers: the model before unlearning, alternate answers."""
    alternates = "alternate answers" if "alternate" in loss.reads else ""
    own = [NEEDS[name] for name in loss.inputs if name in NEEDS]
    of_retain = RETAIN_LOSSES[loss.retain].inputs if loss.retain in RETAIN_LOSSES else []
    for_retain = [f"{NEEDS[name]} (for the retain loss)" for name in of_retain if name in NEEDS.keys() - loss.inputs]
    return "; ".join(filter(None, (alternates, *own, *for_retain))) or "–"


def settings(loss: Loss) -> str:
    """A loss's own settings with their defaults."""
    return _listed(loss.settings)


def settings_of_start(start: Initialiser) -> str:
    """The settings that an initialiser reads with their defaults; those that follow from data or machine have none."""
    return _listed({name: value for name, value in start.settings.items() if value is not None})


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_shown(value)}" for name, value in values.items()) or "–"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)  # as a flag takes it
