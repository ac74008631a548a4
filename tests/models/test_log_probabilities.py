import math

import pytest
import torch
import torch.nn.functional as F

from unlora.models import log_probabilities as logp
from unlora.models.log_probabilities import token_logp, upcast


def test_half_precision_is_upcast_and_double_precision_stays():
    kinds = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
    for kind in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        assert upcast(torch.ones(2, dtype=kind)).dtype == kinds.get(kind, kind)


def test_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [5.0, 5.0]], requires_grad=True)
    out = token_logp(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(out, torch.tensor([math.log(3 / 4), math.log(1 / 2)]))
    (out * torch.tensor([2.0, 1.0])).sum().backward()
    # Gradient: weight · (one-hot target - probabilities), with the weights 2 and 1.
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0.5], [0.5, -0.5]]))


@pytest.mark.parametrize("block", [1, 30, logp._CPU_BLOCK])  # blocks of one, a few and all tokens
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_cross_entropy(dtype, block, monkeypatch):
    monkeypatch.setattr(logp, "_CPU_BLOCK", block)
    drawn = torch.Generator().manual_seed(0)
    targets = torch.randint(11, (7,), generator=drawn)
    weights = torch.randn(7, generator=drawn)
    ours, theirs = (
        (torch.randn(7, 11, generator=torch.Generator().manual_seed(1)) * 20).to(dtype).requires_grad_()
        for _ in range(2)
    )
    value, expected = token_logp(ours, targets), -F.cross_entropy(upcast(theirs), targets, reduction="none")
    assert value.dtype == upcast(ours).dtype
    torch.testing.assert_close(value, expected)
    (value.square() * weights).sum().backward()
    (expected.square() * weights).sum().backward()
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_gradient_is_the_derivative():
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(token_logp, (logits, torch.tensor([0, 3, 1, 1, 2])))


def test_it_is_finite_where_the_token_is_certain_and_where_it_is_impossible():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    out = token_logp(logits, torch.tensor([0, 0]))
    assert out.tolist() == [0, -2e4]
    out.sum().backward()
    assert logits.grad.tolist() == [[0, 0], [1, -1]]


def test_no_tokens_have_no_log_probabilities():
    logits = torch.empty(0, 3, requires_grad=True)
    out = token_logp(logits, torch.empty(0, dtype=torch.long))
    out.sum().backward()
    assert out.shape == (0,)
    assert logits.grad.shape == (0, 3)


def test_nothing_but_the_logits_and_targets_is_kept_for_the_backward_pass():
    kept = []
    logits = torch.randn(8, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        token_logp(logits, torch.zeros(8, dtype=torch.long))
    assert sum(t.numel() for t in kept if t.data_ptr() != logits.data_ptr()) == 8
