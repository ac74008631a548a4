"""The results of membership attacks: can the forget set be distinguished from rows that the model never saw?"""

from __future__ import annotations

import math

from unlora.report.read import Membership
from unlora.report.statistics import SPREAD, Measured

# The largest distance of an AUC from 0.5, reached if every forget row is more likely than every unseen row.
_LARGEST_DISTANCE = 0.5


def rows_that_settle(forget_rows: int) -> int | None:
    """Return how many unseen rows a membership attack needs, or None if no number of them is enough.

    With this many rows, an attack detects an AUC that is half as far from 0.5 as possible. If the rows cannot be
    distinguished, the variance of the AUC of n and m rows is (n + m + 1) / (12 n m) (Mann and Whitney 1947).
    """
    needed = 12 * (_LARGEST_DISTANCE / 2 / SPREAD) ** 2  # the largest (n + m + 1) / (n m) with which this is detected
    if needed * forget_rows <= 1:
        return None
    return math.ceil((forget_rows + 1) / (needed * forget_rows - 1))


def most_telling(membership: Membership) -> tuple[str, float]:
    """Return the attack with the AUC furthest from the retrained model's (or 0.5), and by how many standard errors."""
    distances = {}
    for name in membership.attacks:
        away, error = _distance(membership, name), _error(membership, name)
        distances[name] = away / error if error else math.inf if away else 0.0
    worst = max(distances, key=lambda name: distances[name])
    return worst, distances[worst]


def _reference(membership: Membership, name: str) -> Measured:
    """Return the AUC of the attack on the retrained model, or 0.5 if it is not known."""
    return membership.areas["retrained"].get(name, Measured(0.5, 0.0))


def _distance(membership: Membership, name: str, model: str = "unlearned") -> float:
    return abs(membership.areas[model][name].value - _reference(membership, name).value)


def _error(membership: Membership, name: str) -> float:
    """Return the standard error of the distance between the unlearned model's AUC and the reference."""
    return math.hypot(membership.areas["unlearned"][name].standard_error, _reference(membership, name).standard_error)


def sensitive_attacks(membership: Membership) -> dict[str, float]:
    """Return the attacks that would detect half of the original model's distance from the reference.

    Returns:
        {attack: smallest distance of an AUC from the reference that it detects}.
    """
    known = [name for name in membership.attacks if name in membership.areas["original"]]
    least = {name: SPREAD * _error(membership, name) for name in known}
    return {name: at for name, at in least.items() if 0 < 2 * at <= _distance(membership, name, "original")}


def areas_text(membership: Membership, name: str) -> str:
    """Return the AUC of one attack on each model, with standard errors, as text."""
    known = {
        m: membership.areas[m][name] for m in ("unlearned", "original", "retrained") if name in membership.areas[m]
    }
    values = [f"{model} {area.value:.3f} ± {area.standard_error:.3f}" for model, area in known.items()]
    return f"{name}: AUC {', '.join(values).removeprefix('unlearned ')}, ± standard error"
