"""Retain weights that are updated during training: the dual variable of an upper bound on the retain loss."""

from __future__ import annotations


def dual_ascent(
    weight: float,
    retain_loss: float,
    epoch: float,
    dual_step_size: float = 1.0,
    epsilon: float = 0.0,
    dual_warmup_epochs: float = 0.0,
) -> float:
    """Return max(0, λ + η·(retain loss − ε)), the dual step for "retain loss ≤ ε" (PDU, arXiv 2506.05314).

    The weight grows while the retain loss is above ε, and shrinks while it is below. The defaults are those of the
    released code (Entesari et al. 2025). With ε = 0 the weight never shrinks.

    Args:
        weight: λ before the step.
        retain_loss: the mean retain loss over the batches of an optimiser step.
        epoch: the number of epochs trained so far, including this step; may be fractional.
        dual_step_size: η.
        epsilon: ε, in the unit of the retain loss.
        dual_warmup_epochs: the number of epochs in which λ is not updated.
    """
    if epoch <= dual_warmup_epochs:
        return weight
    return max(0.0, weight + dual_step_size * (retain_loss - epsilon))
