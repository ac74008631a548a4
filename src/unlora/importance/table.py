"""The initialisers by name, and what they say about a choice of settings.

To add one to the package, write its file and add its entry here. Your own program adds one with
`register_initialiser`, without changing the package.
"""

from __future__ import annotations

from dataclasses import fields

from unlora.common.errors import InputError, Problem, unknown_name
from unlora.importance.fila import FILA
from unlora.importance.interface import Initialiser
from unlora.importance.lora import LORA
from unlora.importance.pissa import PISSA
from unlora.importance.vila import VILA
from unlora.settings import ImportanceConfig

INITIALISERS: dict[str, Initialiser] = {"vila": VILA, "fila": FILA, "pissa": PISSA, "lora": LORA}
# Settings that moments of single examples do not depend on.
OF_BATCHES = ("importance_batch_size", "forget_passes")


def register_initialiser(name: str, initialiser: Initialiser) -> None:
    """Make an initialiser known by a name in this process: to `--init`, to grids and to every command.

    Args:
        name: what `init` is set to.
        initialiser: how the adapter starts.

    Raises:
        InputError: the name is taken, or `reads` names a setting that `ImportanceConfig` does not have.
    """
    if name in INITIALISERS:
        raise InputError(Problem("name", name, "there is an initialiser of this name already", "choose another name"))
    known = {field.name for field in fields(ImportanceConfig)}
    odd = [unknown_name("reads", setting, known) for setting in initialiser.reads if setting not in known]
    if odd:
        raise InputError(*odd)
    INITIALISERS[name] = initialiser


def initialiser_problems(config: ImportanceConfig) -> list[Problem]:
    """What is wrong with the choice of an initialiser."""
    if config.init not in INITIALISERS:
        return [unknown_name("init", config.init, INITIALISERS)]
    if config.importance_file and INITIALISERS[config.init].centred is None:
        reason = f"{config.init!r} measures no importance"
        return [Problem("importance_file", config.importance_file, reason, "remove it")]
    return []


def unread_settings(config: ImportanceConfig) -> list[str]:
    """The settings that the user changed and the initialiser does not read. A seed is often set for all alike."""
    read = {"init", "importance_seed", *INITIALISERS[config.init].reads}
    names = sorted(field.name for field in fields(config) if field.name not in read)
    return [name for name in names if getattr(config, name) != getattr(type(config), name)]


def estimate_settings(config: ImportanceConfig) -> dict[str, object]:
    """The settings that change what is measured, as they enter the key of the importance file."""
    unread = {"importance_file", "normalised", *(OF_BATCHES if config.moments_per == "example" else ())}
    names = [name for name in ("init", *INITIALISERS[config.init].reads) if name not in unread]
    return {name: getattr(config, name) for name in names}
