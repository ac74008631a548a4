"""Attacks that try to recover the forget set from an unlearned model.

To add an attack, write `cases(model, materials, config)` in a file of its own, and add its name to
`unlora.settings.names`, to the help of `AttackConfig` and to docs/methods.md. `model` is the original model, whose
properties the attack may depend on.
"""

from collections.abc import Callable, Sequence

from torch import nn

from unlora.evals.attacks.interface import Attempt, Case, Materials, UnavailableError, measure, probe
from unlora.settings import AttackConfig, names
from unlora.settings.names import Table

ATTACKS: Table[Callable[[nn.Module, Materials, AttackConfig], Sequence[Attempt]]] = names.ATTACKS

__all__ = ["ATTACKS", "Attempt", "Case", "Materials", "UnavailableError", "measure", "probe"]
