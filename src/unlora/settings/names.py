"""Registries of the losses, initialisers, teachers, benchmarks and attacks that settings choose by name.

A wrong name must be refused before torch is loaded. Each table therefore holds the place where an entry is defined, as
`module:variable`, and imports the entry when it is first looked up. Plugins add entries of their own.

To add an entry to the package, define it in a module, and add its name and place here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from pkgutil import resolve_name
from typing import Any, NamedTuple, TypeVar

from unlora.common.errors import Problem
from unlora.common.plugins import unknown_choice

T = TypeVar("T")
# A label is part of a folder's name.
_LABEL = re.compile(r"[\w.=-]+", re.ASCII)
# The value of `init` for the initialiser that goes with the loss, and of `retain_loss` for no retain term.
AUTO, NO_RETAIN = "auto", "none"


class Table(MutableMapping[str, T]):
    """Entries by name, in insertion order. Entries of unlora itself are imported when they are first looked up."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._entries: dict[str, T | str] = dict(places)

    def __getitem__(self, name: str) -> T:
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = resolve_name(f"unlora.{entry}")
        return entry

    def __setitem__(self, name: str, entry: T) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        # The inherited method calls `__getitem__`, which would import the entry.
        return name in self._entries


INITIALISERS: Table[Any] = Table(
    {
        "vila": "importance.vila:VILA",
        "fila": "importance.fila:FILA",
        "pissa": "importance.pissa:PISSA",
        "lora": "importance.lora:LORA",
    }
)
LOSSES: Table[Any] = Table(
    {
        "ga": "losses.forget:GA",
        "gd": "losses.forget:GD",
        "kl": "losses.forget:KL",
        "ihl": "losses.forget:IHL",
        "distil": "losses.distillation:DISTIL",
        "npo": "losses.preference:NPO",
        "npo_mean": "losses.preference:NPO_MEAN",
        "simnpo": "losses.preference:SIMNPO",
        "dpo": "losses.preference:DPO",
        "idk": "losses.retain:IDK",
        "rmu": "losses.hidden:RMU",
        "undial": "losses.forget:UNDIAL",
        "wga": "losses.forget:WGA",
        "satimp": "losses.forget:SATIMP",
        "ceu": "losses.forget:CEU",
        "pdu": "losses.forget:PDU",
    }
)
RETAIN_LOSSES: Table[Any] = Table(
    {
        "nll": "losses.retain:NLL",
        "kl": "losses.retain:KL",
        "soft_kl": "losses.distillation:SOFT_KL",
        "hidden_mse": "losses.hidden:HIDDEN_MSE",
    }
)
TEACHERS: Table[Any] = Table({"changed_names": "teachers.changed_names:CHANGED_NAMES"})
BENCHMARKS: Table[Any] = Table(
    {
        "persona": "benchmarks.builtin.persona:PERSONA",
        "tofu": "benchmarks.tofu:TOFU",
        "muse": "benchmarks.muse:MUSE",
        "muse-mini": "benchmarks.builtin.muse_mini:MUSE_MINI",
        "wmdp": "benchmarks.wmdp:WMDP",
        "wmdp-mini": "benchmarks.builtin.wmdp_mini:WMDP_MINI",
    }
)
ATTACKS: Table[Any] = Table(
    {
        name: f"evals.attacks.{name}:cases"
        for name in ("relearn", "quantise", "paraphrase", "prefix", "fewshot", "sampling")
    }
)
EXECUTORS: Table[Any] = Table({"local": "bench.executors:local", "ray": "bench.executors:ray_cluster"})
# What `unlora ls` lists.
KINDS: Table[Any] = Table(
    {
        kind: f"pipeline.choices:{kind}"
        for kind in ("initialisers", "losses", "teachers", "retain_losses", "benchmarks", "configurations")
    }
)


def name_problems(argument: str, name: object, known: Collection[str], others: Collection[str] = ()) -> list[Problem]:
    """Return the problem of a name that is neither in a table nor among `others`."""
    return [] if name in known or name in others else [unknown_choice(argument, name, [*others, *known])]


def loss_problems(loss: object, retain_loss: object = None) -> list[Problem]:
    """Return a problem for each of the two losses that does not exist."""
    own = [] if retain_loss is None else name_problems("retain_loss", retain_loss, RETAIN_LOSSES, [NO_RETAIN])
    return [*name_problems("loss", loss, LOSSES), *own]


class Method(NamedTuple):
    """A method of a bench, such as "vila+ihl" or "vila+ihl@rank4".

    Args:
        init: the initialiser.
        loss: the forget loss.
        label: tells settings of one initialiser and loss apart. May be empty.
    """

    init: str
    loss: str
    label: str = ""

    @classmethod
    def of(cls, text: str) -> Method:
        """Split the name of a method into its parts."""
        pair, _, label = text.partition("@")
        init, _, loss = pair.partition("+")
        return cls(init, loss, label)

    @property
    def pair(self) -> str:
        """Initialiser and loss, without the label."""
        return f"{self.init}+{self.loss}"


def method_problems(text: str) -> list[Problem]:
    """Check the name of a method."""
    method = Method.of(text)
    if not method.loss:
        return [Problem("methods", text, "a method is an initialiser and a loss", "write it as vila+ihl")]
    if "@" in text and not _LABEL.fullmatch(method.label):
        reason, fix = "a label has letters, digits and '.', '_', '=' or '-'", "write it as vila+ihl@rank4"
        return [Problem("methods", text, reason, fix)]
    return [*name_problems("methods", method.init, INITIALISERS), *name_problems("methods", method.loss, LOSSES)]
