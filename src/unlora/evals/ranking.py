"""The ranking of open-unlearning's paper (arXiv 2506.12618): memorisation, privacy and utility, each a harmonic mean.

It takes numbers with open-unlearning's names and definitions (`unlora.evals.open_unlearning.numbers`), so that
open-unlearning's files and unlora's logs are ranked in the same way.

- memorisation: of 1 − extraction strength, 1 − exact memorisation, 1 − probability of the paraphrased answer, and
  1 − truth ratio as true / (true + false).
- privacy: of s for four membership attacks, the closeness of the attack's AUC a to the retrained model's a_r. The paper
  does not define s. Here it is 1 − |a − a_r| / max(a_r, 1 − a_r): 1 if a = a_r, and 0 for the AUC farthest from a_r.
- utility: of model utility and fluency, each relative to the original model and at most 1.
- overall: of the three.
"""

from __future__ import annotations

from collections.abc import Mapping

from unlora.evals.metrics import model_utility as harmonic_mean
from unlora.evals.open_unlearning import FLUENCY, MEMBERSHIP, PROB_MEAN

Numbers = Mapping[str, float]

# Lower is better for each of these.
_MEMORISATION = ("extraction_strength", "exact_memorization", "forget_Q_A_PARA_Prob", PROB_MEAN)
# The share of generated answers that are not broken, used in place of fluency if no classifier has judged that.
WHOLE_ANSWERS = "whole_answers"
RANKED = ("overall", "memorisation", "privacy", "utility")


def ranking(own: Numbers, original: Numbers | None, retrained: Numbers | None) -> dict[str, float | None]:
    """Return the four numbers by which a model is ranked. A number is None if the logs lack the values for it.

    Args:
        own: numbers of the model.
        original: numbers of the model before unlearning.
        retrained: numbers of the retrained model.
    """
    parts = {
        "memorisation": _mean([1 - own[name] if name in own else None for name in _MEMORISATION]),
        "privacy": _mean([_closeness(own.get(name), (retrained or {}).get(name)) for name in MEMBERSHIP]),
        "utility": _utility(own, original or {}),
    }
    return {"overall": _mean(list(parts.values())), **parts}


def _utility(own: Numbers, original: Numbers) -> float | None:
    fluency = next((name for name in (FLUENCY, WHOLE_ANSWERS) if name in own and name in original), "")
    return _mean([_relative(own.get(name), original.get(name)) for name in ("model_utility", fluency)])


def _relative(value: float | None, original: float | None) -> float | None:
    return None if value is None or not original else min(1.0, value / original)


def _closeness(auc: float | None, retrained: float | None) -> float | None:
    if auc is None or retrained is None:
        return None
    return 1 - abs(auc - retrained) / max(retrained, 1 - retrained)


def _mean(values: list[float | None]) -> float | None:
    known = [max(0.0, value) for value in values if value is not None]
    return harmonic_mean(known) if len(known) == len(values) else None
