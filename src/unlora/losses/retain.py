"""Retain losses: what keeps the model as it was on the retain set."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unlora.models.forward import LabelledTokens
from unlora.models.log_probabilities import upcast


def nll(out: LabelledTokens) -> Tensor:
    """Mean negative log-likelihood of the labelled tokens, in nats."""
    return -out.logp.mean()


def kl_to_reference(out: LabelledTokens) -> Tensor:
    """KL(ref ‖ π) of the next-token distributions, averaged over labelled tokens only, in nats (arXiv 2401.06121)."""
    assert out.ref_logits is not None
    reference = upcast(out.ref_logits).log_softmax(-1)
    return F.kl_div(upcast(out.logits).log_softmax(-1), reference, log_target=True, reduction="batchmean")
