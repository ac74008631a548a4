"""Attacks on an unlearned model: does the forget set come back?

To add an attack, write `cases(model, materials, config)` in a file of its own, and add its name to
`unlora.settings.names`, to the help of `AttackConfig` and to docs/methods.md. `model` is the original model, in case
the attack depends on its properties.
"""

from collections.abc import Callable, Sequence

from torch import nn

from unlora.evals.attacks.interface import Attempt, Case, Materials, UnavailableError, measure, probe
from unlora.settings import AttackConfig, names
from unlora.settings.names import Table

ATTACKS: Table[Callable[[nn.Module, Materials, AttackConfig], Sequence[Attempt]]] = names.ATTACKS

__all__ = ["ATTACKS", "Attempt", "Case", "Materials", "UnavailableError", "measure", "probe"]
