"""Registries of the losses, initialisers, teachers, benchmarks and attacks that settings choose by name.

A wrong name must be refused before torch is loaded. Each table therefore holds the place where an entry is defined, as
`module:variable`, and imports the entry when it is first looked up. Plugins add entries of their own.

To add an entry to the package, define it in a module, and add its name and place here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping
from pkgutil import resolve_name
from typing import Any, TypeVar

from unlora.common.errors import Problem
from unlora.common.plugins import unknown_choice

T = TypeVar("T")
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


def method_problems(method: str) -> list[Problem]:
    """Check the name of a method, which consists of an initialiser and a loss, such as "vila+ihl"."""
    init, plus, loss = method.partition("+")
    if not plus:
        return [Problem("methods", method, "a method is an initialiser and a loss", "write it as vila+ihl")]
    return [*name_problems("methods", init, INITIALISERS), *name_problems("methods", loss, LOSSES)]
