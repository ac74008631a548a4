import numpy as np
import pytest
import torch

from unlora.adapter import weighted_low_rank
from unlora.adapter.factorise import FULL_SVD_SIZE
from unlora.common.errors import InputError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weighted_error(weight, importance, a0, b0, scaling):
    return (importance[:, None] * (weight - scaling * b0 @ a0).square()).sum().item()


def test_unit_importance_keeps_the_largest_singular_direction():
    """W = diag(3, 2), rank 1: the best approximation is diag(3, 0). With s = 2, B0·A0 = diag(1.5, 0)."""
    a0, b0 = weighted_low_rank(torch.diag(torch.tensor([3.0, 2.0])), torch.ones(2), rank=1, scaling=2.0)
    torch.testing.assert_close(b0 @ a0, torch.diag(torch.tensor([1.5, 0.0])), rtol=1e-4, atol=1e-6)


def test_importance_decides_which_direction_is_kept():
    """Importance (1, 16) gives w = (1, 4) and diag(w)·W = diag(3, 8), so the second row of W is kept unchanged."""
    weight = torch.diag(torch.tensor([3.0, 2.0]))
    a0, b0 = weighted_low_rank(weight, torch.tensor([1.0, 16.0]), rank=1, scaling=1.0)
    torch.testing.assert_close(b0 @ a0, torch.diag(torch.tensor([0.0, 2.0])), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scaling", [0.5, 2.0])
@pytest.mark.parametrize(("shape", "rank"), [((20, 12), 4), ((12, 20), 1), ((8, 8), 8)])
def test_unit_importance_gives_numpys_truncated_svd(shape, rank, scaling):
    weight = normal(*shape)
    a0, b0 = weighted_low_rank(weight, torch.ones(shape[0]), rank, scaling)
    assert (a0.shape, b0.shape) == ((rank, shape[1]), (shape[0], rank))
    u, s, vh = np.linalg.svd(weight.double().numpy())
    expected = u[:, :rank] * s[:rank] @ vh[:rank]
    np.testing.assert_allclose((scaling * b0 @ a0).numpy(), expected, atol=1e-4)


def test_the_weighted_error_is_optimal_and_below_that_of_an_unweighted_svd():
    """By the Eckart-Young theorem, Σ importance·(W − sBA)² at rank r has a lower bound.

    It is the sum of the squared singular values of diag(w)·W without the r largest.
    """
    weight, importance = normal(20, 12), normal(20, seed=1).square() * 10
    ours = weighted_error(weight, importance, *weighted_low_rank(weight, importance, 4, 2.0), 2.0)
    plain = weighted_error(weight, importance, *weighted_low_rank(weight, torch.ones(20), 4, 2.0), 2.0)
    tail = np.linalg.svd((importance.sqrt()[:, None] * weight).double().numpy(), compute_uv=False)[4:]
    assert ours == pytest.approx((tail**2).sum(), rel=1e-3)
    assert ours < 0.9 * plain


def test_both_factors_carry_the_root_of_the_singular_values():
    weight, importance = normal(20, 12), torch.rand(20) + 0.1
    a0, b0 = weighted_low_rank(weight, importance, 3, scaling=4.0, delta=0.0)
    w = importance.sqrt()[:, None]
    expected = torch.diag(torch.linalg.svdvals(w * weight)[:3] / 4.0)
    torch.testing.assert_close(a0 @ a0.T, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((w * b0).T @ (w * b0), expected, rtol=1e-4, atol=1e-5)


def test_importance_of_every_entry_counts_as_its_row_sums():
    weight, importance = normal(6, 6), torch.rand(6, 6)
    for ours, theirs in zip(
        weighted_low_rank(weight, importance, 2, 1.0), weighted_low_rank(weight, importance.sum(1), 2, 1.0), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_rounding_errors_are_not_amplified_in_rows_of_little_importance(scale):
    """Row i of B0 is w_i/(w_i + δ)·(W·V)_i·(S·s)^(−1/2): 0 for w_i = 0, and of normal size even for w_i = 10⁻⁴."""
    importance = scale * torch.tensor([1.0, 0.0, 1.0, 1e-8])
    weight = normal(4, 5)
    a0, b0 = weighted_low_rank(weight, importance, 2, 1.0)
    w = importance.double().sqrt()
    _, s, vh = np.linalg.svd((w[:, None] * weight).numpy())
    expected = (w / (w + 1e-5)).numpy()[:, None] * (weight.double().numpy() @ vh[:2].T) @ (vh[:2])
    np.testing.assert_allclose((b0 @ a0).numpy(), expected, atol=1e-4)
    assert (b0[1] == 0).all()
    assert s[1] > 0.1


def test_a_weight_of_lower_rank_is_reproduced_exactly():
    weight = normal(6, 2) @ normal(2, 5)
    a0, b0 = weighted_low_rank(weight, torch.ones(6), 4, 2.0)
    torch.testing.assert_close(2.0 * b0 @ a0, weight, atol=1e-4, rtol=1e-4)
    for factor in weighted_low_rank(torch.zeros(6, 5), torch.ones(6), 2, 1.0):
        assert factor.isfinite().all()


def decaying(rows, columns):
    """Return a matrix with the singular values 1, 1/2, 1/3, ..."""
    u, v = (torch.linalg.qr(normal(n, min(rows, columns), seed=n))[0] for n in (rows, columns))
    return u / torch.arange(1.0, min(rows, columns) + 1) @ v.T


@pytest.mark.parametrize("shape", [(600, 530), (530, 600)])
@pytest.mark.parametrize("spectrum", ["decaying", "flat"])
def test_the_randomised_svd_of_large_weights_is_within_one_percent_of_the_best(shape, spectrum):
    assert min(shape) > FULL_SVD_SIZE
    weight = decaying(*shape) if spectrum == "decaying" else normal(*shape)
    importance = torch.rand(shape[0], generator=torch.Generator().manual_seed(5)) + 0.01
    error = weighted_error(weight, importance, *weighted_low_rank(weight, importance, 8, 2.0), 2.0)
    tail = torch.linalg.svdvals(importance.sqrt()[:, None] * weight)[8:]
    assert error <= 1.01 * tail.square().sum().item()


def test_the_randomised_svd_is_repeatable_and_leaves_the_random_state_alone():
    weight = normal(FULL_SVD_SIZE + 8, FULL_SVD_SIZE + 1)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(weighted_low_rank(weight, torch.ones(len(weight)), 4, 1.0))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_half_precision_weights_give_float32_factors_without_a_graph():
    weight = torch.nn.Parameter(normal(6, 5).to(torch.bfloat16))
    for factor in weighted_low_rank(weight, torch.ones(6), 2, 1.0):
        assert factor.dtype == torch.float32
        assert not factor.requires_grad


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("rank=0", {"rank": 0}),
        ("rank=5", {"rank": 5}),
        ("scaling=0", {"scaling": 0}),
        ("scaling=-2.0", {"scaling": -2.0}),
        (r"row_importance=\(4,\)", {"row_importance": torch.ones(4)}),
        (r"row_importance=\(4, 6\)", {"row_importance": torch.ones(4, 6)}),
        (r"row_importance=\(6, 1\)", {"row_importance": torch.ones(6, 1)}),
        ("row_importance=.*negative", {"row_importance": torch.tensor([1.0, 1, 1, 1, 1, -1e-9])}),
        ("row_importance=.*negative", {"row_importance": torch.ones(6, 4) - 2 * torch.eye(6, 4)}),
        ("row_importance=.*non-finite", {"row_importance": torch.tensor([1.0, 1, 1, 1, 1, torch.nan])}),
        ("row_importance=.*non-finite", {"row_importance": torch.tensor([1.0, 1, 1, 1, 1, torch.inf])}),
    ],
)
def test_arguments_that_cannot_work_are_refused_by_name(argument, change):
    arguments = {"weight": normal(6, 4), "row_importance": torch.ones(6), "rank": 2, "scaling": 2.0, **change}
    with pytest.raises(InputError, match=argument):
        weighted_low_rank(**arguments)
