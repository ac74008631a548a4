"""Retain losses, which preserve the model's behaviour on the retain set.

Shapes: `logp` [tokens]; `logits` and `ref_logits` [tokens, vocabulary].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unlora.losses.interface import Loss
from unlora.models.log_probabilities import upcast


def nll(logp: Tensor) -> Tensor:
    """mean_t (−log p(y_t)): the usual negative log-likelihood of the labelled tokens, in nats."""
    return -logp.mean()


def kl_to_reference(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """mean_t KL(ref ‖ p) of the next-token distributions, in nats (TOFU, arXiv 2401.06121)."""
    reference = upcast(ref_logits).log_softmax(-1)
    return F.kl_div(upcast(logits).log_softmax(-1), reference, log_target=True, reduction="batchmean")


_TOFU = "Maini et al. 2024 (arXiv 2401.06121)"
NLL = Loss(nll, "mean_t (−log p(y_t))", _TOFU)
KL = Loss(kl_to_reference, "mean_t KL(ref ‖ p)", _TOFU)
# A forget loss: the usual NLL, but of the alternate answers.
IDK = Loss(nll, "mean_t (−log p(y'_t))", _TOFU, reads=("alternate",))
