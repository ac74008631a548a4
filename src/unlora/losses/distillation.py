"""Distillation losses: a teacher defines what replaces the forgotten answers, and the original model all other answers.

Here t is the teacher's distribution and p the model's. Both are softened by a temperature τ: t^(1/τ) and p^(1/τ),
renormalised. Plain KL is small as soon as an unlikely token has some small probability. The softened KL also depends on
the odds among unlikely tokens, which decide how much more likely a true answer is than a wrong one.

Shapes: `logits` and `ref_logits` [tokens, vocabulary], `logp` (log p(y_t)) [tokens].
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlora.data.lessons import Lesson, with_others
from unlora.losses.interface import Loss
from unlora.models.log_probabilities import upcast

_TEMPERATURE = 2.0


def distillation(
    logits: Tensor, logp: Tensor, lesson: Lesson, temperature: float = _TEMPERATURE, excess_weight: float = 0.5
) -> Tensor:
    """mean_t (τ²·KL_τ(t ‖ p) + μ·max(0, log p(y_t) − log t(y_t))), at least 0. Tokens that are not taught count as 0.

    The second term lowers the probability of a true token to the teacher's, and no further. The KL treats each of the
    teacher's most likely tokens as a class of its own, and all other tokens together as one more class.

    Args:
        logits: the logits of the model.
        logp: the log-probabilities of the true tokens.
        lesson: the teacher's predictions.
        temperature: τ.
        excess_weight: μ.

    Source: Hinton et al. 2015 (arXiv 1503.02531), Eldan and Russinovich 2023 (arXiv 2310.02238).
    """
    kl = _divergence(logits, lesson, temperature)
    return (kl + excess_weight * _excess(logp, lesson)).sum() / len(logp)


@torch.no_grad()
def teacher_kl(logits: Tensor, logp: Tensor, lesson: Lesson) -> Tensor:
    """mean_t KL(t ‖ p), in nats."""
    return _divergence(logits, lesson, 1.0).sum() / len(logp)


@torch.no_grad()
def teacher_excess(logits: Tensor, logp: Tensor, lesson: Lesson) -> Tensor:
    """mean_t max(0, log p(y_t) − log t(y_t)), in nats: how far true tokens are above their probability under t."""
    return _excess(logp, lesson).sum() / len(logp)


def softened_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """mean_t τ²·KL_τ(ref ‖ p), τ = 2, in nats. This keeps the model's predictions those of the original."""
    own, reference = (upcast(values).div(_TEMPERATURE).log_softmax(-1) for values in (logits, ref_logits))
    return _TEMPERATURE**2 * _kl(reference, own).mean()


def _divergence(logits: Tensor, lesson: Lesson, temperature: float) -> Tensor:
    """Return τ²·KL_τ of each taught token, [taught tokens]."""
    own = with_others(upcast(logits[lesson.places]).log_softmax(-1).gather(-1, lesson.ids))
    return temperature**2 * _kl(*((values / temperature).log_softmax(-1) for values in (lesson.logp, own)))


def _excess(logp: Tensor, lesson: Lesson) -> Tensor:
    return (logp[lesson.places] - lesson.true_logp).relu()


def _kl(reference: Tensor, own: Tensor) -> Tensor:
    """Return the KL divergence of each row of log-probabilities, in nats."""
    return (reference.exp() * (reference - own)).sum(-1)


DISTIL = Loss(
    distillation,
    "mean_t (τ²·KL_τ(t ‖ p) + μ·max(0, log p(y_t) − log t(y_t)))",
    "Eldan and Russinovich 2023 (arXiv 2310.02238)",
    retain="soft_kl",
    measures={"teacher_kl": teacher_kl, "teacher_excess": teacher_excess},
)
SOFT_KL = Loss(softened_kl, "mean_t τ²·KL_τ(ref ‖ p) at temperature τ = 2", "Hinton et al. 2015 (arXiv 1503.02531)")
