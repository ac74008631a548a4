import math

import numpy as np
import pytest
import torch

from unlora.adapter.compress import compress, total


def factors(out, rank, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator)


# The factors have rank 8, but in the last two shapes their product has a rank of at most 5.
@pytest.mark.parametrize(("out", "width"), [(20, 30), (30, 20), (5, 40), (40, 5)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_compression_is_numpys_truncated_svd_and_the_error_is_its_tail(out, width, rank):
    a, b = factors(out, 8, width)
    small = compress(a, b, rank)
    u, s, vh = np.linalg.svd(b.double().numpy() @ a.double().numpy())
    assert (small.a.shape, small.b.shape) == ((rank, width), (out, rank))
    np.testing.assert_allclose((small.b @ small.a).numpy(), u[:, :rank] * s[:rank] @ vh[:rank], atol=1e-4)
    assert small.norm == pytest.approx(np.sqrt((s**2).sum()), rel=1e-5)
    assert small.error == pytest.approx(np.sqrt((s[rank:] ** 2).sum()), rel=1e-5, abs=1e-4)


def test_both_factors_get_the_root_of_the_singular_values():
    """B·A = diag(9, 4, 0) has norm sqrt(81 + 16). At rank 1, each factor has norm sqrt(9) = 3 and the error is 4."""
    small = compress(torch.eye(3)[:2] * 9, torch.tensor([[1.0, 0], [0, 4 / 9], [0, 0]]), 1)
    assert small.a.norm().item() == pytest.approx(3)
    assert small.b.norm().item() == pytest.approx(3)
    assert (small.error, small.norm) == (pytest.approx(4), pytest.approx(math.sqrt(97)))


@pytest.mark.parametrize("rank", [8, 50])
def test_enough_ranks_keep_the_factors_exactly(rank):
    a, b = factors(20, 8, 30)
    same = compress(a, b, rank)
    assert torch.equal(same.a, a)
    assert torch.equal(same.b, b)
    assert same.error == 0


def test_a_product_of_zero_stays_zero():
    small = compress(torch.ones(4, 6), torch.zeros(5, 4), 2)
    assert not small.b.any()
    assert total([(small, 2.0)]).relative_error == 0


def test_half_precision_is_computed_in_float32():
    a, b = (factor.bfloat16() for factor in factors(20, 8, 30))
    small, exact = compress(a, b, 3), compress(a.float(), b.float(), 3)
    assert small.a.dtype == torch.bfloat16
    assert small.error == exact.error
    assert torch.equal(small.a, exact.a.bfloat16())


def test_the_total_weighs_modules_by_the_change_they_make():
    """With their scalings, the changes have the norms 2 · 2.5 = 5 and 12, and the errors 3 and 4.

    The relative error is sqrt(9 + 16) / sqrt(25 + 144) = 5/13 in total, and at most 3/5 in one module.
    """
    a, b = torch.eye(2, 6), torch.eye(4, 2)
    first = compress(a * torch.tensor([[2.0], [1.5]]), b, 1)  # scaled by 2, its singular values are 4 and 3
    second = compress(a * torch.tensor([[math.sqrt(128)], [4.0]]), b, 1)
    cost = total([(first, 2.0), (second, 1.0)])
    assert cost.rank == 1
    assert cost.relative_error == pytest.approx(5 / 13)
    assert cost.largest_relative_error == pytest.approx(3 / 5)
