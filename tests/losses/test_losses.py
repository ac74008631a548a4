"""Every loss is compared with hand computations and with its definition token by token, and tried at extreme values."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.outputs import ALL, leaf, random_outputs, states, tokens, with_leaf
from unlora.data.lessons import Lesson
from unlora.losses.table import LOSSES, RETAIN_LOSSES
from unlora.models.forward import HiddenStates, LabelledTokens, hidden_states

LOG2 = math.log(2)
P = [0.5, 0.25, 0.125, 0.125]  # the probabilities of the vocabulary entries 0 to 3


def log2s(*values):
    """Return log-probabilities, given in units of ln 2."""
    return torch.tensor(values, dtype=torch.float64) * LOG2


def hand_ascent():
    """Two tokens have probabilities 1/2 and 1/4, so mean log p = (−1 − 2)/2·ln 2."""
    return tokens([P, P], [0, 1]), {}, -1.5 * LOG2


def hand_ihl():
    """Compute 1 + p(y) − p(runner-up) for two tokens.

    Target 0: 1 + 1/2 − 1/4 = 1.25. Target 2: 1 + 1/8 − 1/2 = 0.625. Mean 0.9375.
    """
    return tokens([P, P], [0, 2]), {}, 0.9375


def hand_distil():
    """Only the second of two tokens is taught. Its label is y = 0, and τ = 2, μ = 1/2.

    The lesson gives the probabilities of tokens 1, 0 and all others together. The model has p = (1/4, 9/16, 3/16),
    which is (1/2, 3/4, √3/4)/(5/4 + √3/4) when softened. The teacher has t = (9/16, 1/4, 3/16), so the first two
    softened values are swapped. Hence τ²·KL = 4·((3/4 − 1/2)·ln(3/2))/(5/4 + √3/4).
    The excess is log p(y) − log t(y) = ln(9/16) − ln(1/4) = ln(9/4). The loss is the mean over both tokens.
    """
    lesson = Lesson(
        torch.tensor([1]),
        torch.tensor([[1, 0]]),
        torch.tensor([[9 / 16, 1 / 4, 3 / 16]], dtype=torch.float64).log(),
        torch.tensor([1 / 4], dtype=torch.float64).log(),
    )
    out = tokens([P, [9 / 16, 1 / 4, 3 / 32, 3 / 32]], [1, 0], lesson=lesson)
    kl = 4 * (1 / 4 * math.log(3 / 2)) / (5 / 4 + math.sqrt(3) / 4)
    return out, {"excess_weight": 0.5}, (kl + 0.5 * math.log(9 / 4)) / 2


def hand_soft_kl():
    """p = (1/4, 9/16, 3/32, 3/32) and ref = (9/16, 1/4, 3/32, 3/32), with τ = 2.

    The softened probabilities are the square roots of these, divided by their sum 5/4 + √(3/8).
    τ²·KL = 4·((3/4 − 1/2)·ln(3/2))/(5/4 + √(3/8)).
    """
    reference = tokens([[9 / 16, 1 / 4, 3 / 32, 3 / 32]], [0]).logits
    out = tokens([[1 / 4, 9 / 16, 3 / 32, 3 / 32]], [0], ref_logits=reference)
    return out, {}, math.log(3 / 2) / (5 / 4 + math.sqrt(3 / 8))


def hand_npo():
    """β = 1/2, d = log π − log π_ref.

    Example 0: two tokens with p = 1/2 and 1/4, π_ref = 1/2. So d = −2 ln 2 and −log σ(−βd) = ln(1 + 2^−1) = ln 1.5.
    Example 1: one token with p = 1/2, π_ref = 1/4. So d = ln 2 and −log σ(−βd) = ln(1 + √2).
    The loss is (2/β)·mean = 4·(ln 1.5 + ln(1 + √2))/2.
    """
    out = tokens([P, P, P], [0, 1, 0], [0, 0, 1], ref_logp=log2s(-1, -2))
    return out, {"beta": 0.5}, 2 * (math.log(1.5) + math.log(1 + math.sqrt(2)))


def hand_npo_mean():
    """Like `hand_npo`, but d is divided by the number of tokens.

    Example 0 has two tokens, so d = −ln 2, and ln(1 + 2^−½) replaces ln 1.5.
    """
    out, settings, _ = hand_npo()
    return out, settings, 2 * (math.log(1 + math.sqrt(0.5)) + math.log(1 + math.sqrt(2)))


def hand_simnpo():
    """β = 2, δ = ln 2.

    Example 0: two tokens with p = 1/2 and 1/8. NLL/n − δ = 2 ln 2 − ln 2 = ln 2, and −log σ(2 ln 2) = ln(1 + 1/4).
    Example 1: one token with p = 1/2. NLL/n − δ = 0, and −log σ(0) = ln 2.
    The loss is (2/β)·mean = (ln 1.25 + ln 2)/2 = ln(2.5)/2.
    """
    return tokens([P, P, P], [0, 2, 0], [0, 0, 1]), {"beta": 2.0, "delta": LOG2}, math.log(2.5) / 2


def hand_dpo():
    """β = 1/2, r = log π − log π_ref.

    True answer: π = 1/4 and π_ref = 1/2, so r = −ln 2. Alternate: π = 1/2 and π_ref = 1/8, so r' = 2 ln 2.
    The loss is −(2/β)·log σ(β·(r' − r)) = −4·log σ(1.5 ln 2) = 4·ln(1 + 2^−1.5).
    """
    out = tokens([P, P], [1, 0], ref_logp=log2s(-1, -3))
    return out, {"beta": 0.5}, 4 * math.log(1 + 2**-1.5)


def hand_wga():
    """β = 2, two tokens with p = 1/2 and 1/4. Mean p^β·log p = (1/4·(−ln 2) + 1/16·(−2 ln 2))/2 = −3/16·ln 2."""
    return tokens([P, P], [0, 1]), {"beta": 2.0}, -3 / 16 * LOG2


def hand_satimp():
    """β₁ = 2, β₂ = 1, two tokens with p = 1/2 and 1/4.

    Mean p^β₁·(1 − p)^β₂·log p = (1/4·1/2·(−ln 2) + 1/16·3/4·(−2 ln 2))/2 = −(8 + 6)/128·ln 2.
    """
    return tokens([P, P], [0, 1]), {"beta1": 2.0, "beta2": 1.0}, -14 / 128 * LOG2


def hand_ceu():
    """q is p without the target, renormalised.

    Target 0: q = (0, 1/2, 1/4, 1/4), −Σ q log p = (1 + 3/4 + 3/4)·ln 2 = 5/2·ln 2.
    Target 1: q = (2/3, 0, 1/6, 1/6), −Σ q log p = (2/3 + 1/2 + 1/2)·ln 2 = 5/3·ln 2.
    Mean (5/2 + 5/3)/2·ln 2 = 25/12·ln 2.
    """
    return tokens([P, P], [0, 1]), {}, 25 / 12 * LOG2


def hand_undial():
    """β = ln 2 halves the reference probability of the target. q is the result, renormalised.

    Target 0: q = (1/4, 1/4, 1/8, 1/8)·4/3, −Σ q log p = (1/3 + 2/3 + 1/2 + 1/2)·ln 2 = 2 ln 2.
    Target 2: q = (8, 4, 1, 2)/15, −Σ q log p = (8 + 8 + 3 + 6)/15·ln 2 = 5/3·ln 2.
    Mean 11/6·ln 2.
    """
    reference = torch.tensor([P, P], dtype=torch.float64).log()
    return tokens([P, P], [0, 2], ref_logits=reference), {"beta": LOG2}, 11 / 6 * LOG2


def hand_pdu():
    """The logits of the first token are (−1, −2, −3, −3)·ln 2, with maximum −ln 2 and mean −2.25·ln 2.

    Its squared margin is (1.25·ln 2)² = 1.5625·ln² 2. The equal logits of the second token have margin 0.
    """
    return tokens([P, [0.25] * 4], [0, 0]), {}, 1.5625 / 2 * LOG2**2


def hand_rmu():
    """At h = 0, the mean of (h − c·u/‖u‖)² over the dimensions is c²/dimensions = 9/4, for any direction u."""
    return states([[0.0] * 4] * 2), {"steering_coeff": 3.0}, 9 / 4


def hand_nll():
    """The negative of `hand_ascent`."""
    return tokens([P, P], [0, 1]), {}, 1.5 * LOG2


def hand_kl():
    """The first token's KL(ref ‖ uniform) = 1/2·ln 2 + 1/4·0 + 2·1/8·(−ln 2) = ln 2 / 4.

    The second token has the reference distribution, so its KL is 0. Mean ln 2 / 8.
    """
    reference = torch.tensor([P, P], dtype=torch.float64).log()
    return tokens([[0.25] * 4, P], [0, 1], ref_logits=reference), {}, LOG2 / 8


def hand_hidden_mse():
    """The differences are 0, 2, 0, 1, so their mean square is (4 + 1)/4."""
    reference = torch.tensor([[1.0, 0.0], [3.0, 3.0]], dtype=torch.float64)
    return states([[1.0, 2.0], [3.0, 4.0]], ref_states=reference), {}, 1.25


HAND = {
    "forget-ga": hand_ascent,
    "forget-gd": hand_ascent,
    "forget-kl": hand_ascent,
    "forget-ihl": hand_ihl,
    "forget-npo": hand_npo,
    "forget-npo_mean": hand_npo_mean,
    "forget-simnpo": hand_simnpo,
    "forget-dpo": hand_dpo,
    "forget-idk": hand_nll,
    "forget-rmu": hand_rmu,
    "forget-undial": hand_undial,
    "forget-distil": hand_distil,
    "forget-wga": hand_wga,
    "forget-satimp": hand_satimp,
    "forget-ceu": hand_ceu,
    "forget-pdu": hand_pdu,
    "retain-nll": hand_nll,
    "retain-kl": hand_kl,
    "retain-soft_kl": hand_soft_kl,
    "retain-hidden_mse": hand_hidden_mse,
}


# The definition of each loss, token by token in float64. Parts behind a stop-gradient are computed from `at`.


def softmax(row):
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def array(tensor):
    return tensor.double().numpy()


def slow_logp(out):
    return [math.log(softmax(row)[y]) for row, y in zip(array(out.logits), out.targets.tolist(), strict=True)]


def slow_sums(out):
    sums, counts = np.zeros(out.examples), np.zeros(out.examples)
    for example, value in zip(out.example.tolist(), slow_logp(out), strict=True):
        sums[example] += value
        counts[example] += 1
    return sums, counts


def minus_log_sigmoid(x):
    return math.log(1 + math.exp(-x))


def slow_ascent(out, at):
    return np.mean(slow_logp(out))


def slow_ihl(out, at):
    values = []
    for row, target in zip(array(out.logits), out.targets.tolist(), strict=True):
        p = softmax(row)
        values.append(max(0, 1 + p[target] - max(p[v] for v in range(len(p)) if v != target)))
    return np.mean(values)


def slow_npo(out, at, beta=0.1):
    gaps = slow_sums(out)[0] - array(out.ref_logp)
    return 2 / beta * np.mean([minus_log_sigmoid(-beta * gap) for gap in gaps])


def slow_npo_mean(out, at, beta=0.1):
    sums, counts = slow_sums(out)
    gaps = (sums - array(out.ref_logp)) / counts
    return 2 / beta * np.mean([minus_log_sigmoid(-beta * gap) for gap in gaps])


def slow_simnpo(out, at, beta=4.5, delta=0.0):
    sums, counts = slow_sums(out)
    return 2 / beta * np.mean([minus_log_sigmoid(beta * (-s / n - delta)) for s, n in zip(sums, counts, strict=True)])


def slow_dpo(out, at, beta=0.1):
    ratios = slow_sums(out)[0] - array(out.ref_logp)
    half = out.examples // 2
    return 2 / beta * np.mean([minus_log_sigmoid(beta * (ratios[half + i] - ratios[i])) for i in range(half)])


def slow_wga(out, at, beta=1.0):
    return np.mean([math.exp(w) ** beta * x for w, x in zip(slow_logp(at), slow_logp(out), strict=True)])


def slow_satimp(out, at, beta1=5.0, beta2=1.0):
    weights = [math.exp(w) ** beta1 * (1 - math.exp(w)) ** beta2 for w in slow_logp(at)]
    return np.mean([w * x for w, x in zip(weights, slow_logp(out), strict=True)])


def slow_cross_entropies(targets, out):
    """Return the mean cross-entropy between the distributions `targets` and the model's."""
    values = []
    for q, row in zip(targets, array(out.logits), strict=True):
        p = softmax(row)
        values.append(-sum(q[v] * math.log(p[v]) for v in range(len(p))))
    return np.mean(values)


def slow_ceu(out, at):
    targets = []
    for row, y in zip(array(at.logits), at.targets.tolist(), strict=True):
        p = softmax(row)
        targets.append([0 if v == y else p[v] / (1 - p[y]) for v in range(len(p))])
    return slow_cross_entropies(targets, out)


def slow_undial(out, at, beta=10.0):
    rows = zip(array(out.ref_logits), out.targets.tolist(), strict=True)
    return slow_cross_entropies(
        [softmax(np.array([z - beta * (v == y) for v, z in enumerate(r)])) for r, y in rows], out
    )


def soften(probabilities, temperature):
    roots = [p ** (1 / temperature) for p in probabilities]
    return [root / sum(roots) for root in roots]


def slow_divergence(reference, own, temperature=2.0):
    pairs = zip(soften(reference, temperature), soften(own, temperature), strict=True)
    return temperature**2 * sum(a * math.log(a / b) for a, b in pairs)


def slow_distil(out, at, temperature=2.0, excess_weight=0.5):
    rows, total = array(out.logits), 0.0
    taught = (out.lesson.places, out.lesson.ids, out.lesson.logp, out.lesson.true_logp)
    for place, ids, logp, true in zip(*(part.tolist() for part in taught), strict=True):
        p = softmax(rows[place])
        known = [p[v] for v in ids]
        total += slow_divergence([math.exp(value) for value in logp], [*known, 1 - sum(known)], temperature)
        total += excess_weight * max(0.0, math.log(p[out.targets[place]]) - true)
    return total / len(rows)


def slow_soft_kl(out, at):
    rows = zip(array(out.ref_logits), array(out.logits), strict=True)
    return np.mean([slow_divergence(softmax(ref), softmax(own)) for ref, own in rows])


def slow_pdu(out, at):
    return np.mean([(max(row) - sum(row) / len(row)) ** 2 for row in array(out.logits)])


def slow_rmu(out, at, steering_coeff=6.5, seed=42):
    u = torch.rand(out.states.shape[1], generator=torch.Generator().manual_seed(seed)).double().tolist()
    length = math.sqrt(sum(x * x for x in u))
    return np.mean(
        [(h - steering_coeff * x / length) ** 2 for row in array(out.states) for h, x in zip(row, u, strict=True)]
    )


def slow_nll(out, at):
    return -slow_ascent(out, at)


def slow_kl(out, at):
    values = []
    for row, ref_row in zip(array(out.logits), array(out.ref_logits), strict=True):
        p, q = softmax(row), softmax(ref_row)
        values.append(sum(q[v] * math.log(q[v] / p[v]) for v in range(len(p))))
    return np.mean(values)


def slow_hidden_mse(out, at):
    rows = zip(array(out.states), array(out.ref_states), strict=True)
    return np.mean([(h - r) ** 2 for row, ref in rows for h, r in zip(row, ref, strict=True)])


SLOW = {
    "forget-ga": slow_ascent,
    "forget-gd": slow_ascent,
    "forget-kl": slow_ascent,
    "forget-ihl": slow_ihl,
    "forget-npo": slow_npo,
    "forget-npo_mean": slow_npo_mean,
    "forget-simnpo": slow_simnpo,
    "forget-dpo": slow_dpo,
    "forget-idk": slow_nll,
    "forget-rmu": slow_rmu,
    "forget-undial": slow_undial,
    "forget-distil": slow_distil,
    "forget-wga": slow_wga,
    "forget-satimp": slow_satimp,
    "forget-ceu": slow_ceu,
    "forget-pdu": slow_pdu,
    "retain-nll": slow_nll,
    "retain-kl": slow_kl,
    "retain-soft_kl": slow_soft_kl,
    "retain-hidden_mse": slow_hidden_mse,
}
# Settings that differ from the defaults, to check that each has an effect.
OTHER = {
    "forget-npo": {"beta": 0.7},
    "forget-npo_mean": {"beta": 0.7},
    "forget-simnpo": {"beta": 0.7, "delta": 0.3},
    "forget-dpo": {"beta": 0.7},
    "forget-rmu": {"steering_coeff": 2.0, "seed": 3},
    "forget-undial": {"beta": 1.5},
    "forget-distil": {"excess_weight": 2.0, "temperature": 3.0},
    "forget-wga": {"beta": 0.3},
    "forget-satimp": {"beta1": 0.5, "beta2": 2.5},
}
# Losses with a stop-gradient. Their gradient is not that of the whole expression, which finite differences estimate.
STOPPED = {"forget-wga", "forget-satimp", "forget-ceu"}


def test_every_loss_in_the_tables_is_tested_here():
    assert set(HAND) == set(SLOW) == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_loss_equals_hand_arithmetic(name):
    out, settings, expected = HAND[name]()
    assert ALL[name](out, **settings).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ALL)
def test_loss_equals_its_definition_token_by_token(name, seed):
    out = random_outputs(ALL[name], seed)
    assert ALL[name](out).item() == pytest.approx(SLOW[name](out, out), rel=1e-6)


@pytest.mark.parametrize("name", OTHER)
def test_settings_have_the_effect_of_their_symbols(name):
    out = random_outputs(ALL[name], 7)
    value = ALL[name](out, **OTHER[name]).item()
    assert value == pytest.approx(SLOW[name](out, out, **OTHER[name]), rel=1e-6)
    assert value != pytest.approx(ALL[name](out).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ALL)
def test_lower_precision_is_computed_in_float32(name, dtype):
    out = random_outputs(ALL[name], 0, dtype)
    loss = ALL[name](out)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(SLOW[name](out, out), rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(ALL) - STOPPED))
def test_gradient_equals_finite_differences(name):
    out = random_outputs(ALL[name], 3)
    values = leaf(out).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ALL[name](with_leaf(out, x)), [values])


@pytest.mark.parametrize("name", sorted(STOPPED))
def test_gradient_equals_finite_differences_with_weights_and_targets_held_fixed(name):
    out = random_outputs(ALL[name], 3)
    values = out.logits.clone().requires_grad_()
    [gradient] = torch.autograd.grad(ALL[name](with_leaf(out, values)), values)
    for place in range(0, values.numel(), 5):
        step = torch.zeros(values.numel(), dtype=torch.float64)
        step[place] = 1e-5
        step = step.view_as(values)
        ends = [SLOW[name](with_leaf(out, out.logits + sign * step), out) for sign in (1, -1)]
        assert gradient.flatten()[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


def extreme(loss, height, dtype):
    """Return four tokens with logit `height` for the target and 0 otherwise, or hidden states of `height` only."""
    example, generator = torch.tensor([0, 0, 1, 1]), torch.Generator().manual_seed(0)
    if loss.forward is hidden_states:
        reference = torch.randn(4, 6, generator=generator).to(dtype)
        return HiddenStates(torch.full((4, 6), height, dtype=dtype), example, 2, ref_states=reference)
    targets = torch.tensor([1, 2, 3, 5])
    logits = torch.zeros(4, 6, dtype=dtype)
    logits[range(4), targets] = height
    teacher = torch.full((4, 3), 1 / 4).log()
    lesson = Lesson(torch.arange(4), torch.stack([targets, (targets + 1) % 6], 1), teacher, teacher[:, 0])
    reference = {"ref_logp": torch.tensor([-5.0, 0.0]), "ref_logits": torch.randn(4, 6, generator=generator).to(dtype)}
    return LabelledTokens(logits, targets, example, 2, lesson=lesson, **reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("height", [50.0, 1e4, -50.0, -1e4])
@pytest.mark.parametrize("name", ALL)
def test_loss_and_gradient_are_finite_for_a_certain_and_for_an_impossible_token(name, height, dtype):
    """The probability of the true token is 1 or 0 up to rounding."""
    out = extreme(ALL[name], height, dtype)
    values = leaf(out).requires_grad_()
    loss = ALL[name](out)
    loss.backward()
    assert loss.isfinite()
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("height", [1e4, -1e4])
@pytest.mark.parametrize("name", ["retain-kl", "forget-undial"])
def test_an_extreme_reference_gives_a_finite_loss_and_gradient(name, height):
    out = extreme(ALL[name], height, torch.float32)
    out = replace(out, ref_logits=out.logits, logits=-out.logits)
    values = leaf(out).requires_grad_()
    loss = ALL[name](out)
    loss.backward()
    assert loss.isfinite()
    assert values.grad.isfinite().all()


def test_inverted_hinge_is_bounded_by_0_and_2_where_ascent_is_not():
    certain, impossible = [torch.tensor([[sign * 100.0, 0.0]]) for sign in (1, -1)]
    of = [LabelledTokens(x, torch.tensor([0]), torch.tensor([0]), 1) for x in (certain, impossible)]
    assert [LOSSES["ihl"](out).item() for out in of] == pytest.approx([2, 0], abs=1e-6)
    assert LOSSES["ga"](of[1]).item() == pytest.approx(-100)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_npo_begins_as_gradient_ascent_on_the_summed_log_likelihood(beta):
    """At step 0, π = π_ref, so x = log π − log π_ref = 0.

    The loss is −(2/β)·ln σ(0) = (2/β)·ln 2, and its derivative is d/dx (2/β)·ln(1 + e^{βx}) = 2σ(0) = 1.
    """
    out = random_outputs(LOSSES["npo"], 1)
    gradients = []
    for loss in (LOSSES["npo"], lambda out, beta: out.example_logp.mean()):
        logits = out.logits.clone().requires_grad_()
        start = replace(out, logits=logits, ref_logp=out.example_logp.detach())
        value = loss(start, beta=beta)
        gradients += torch.autograd.grad(value, logits)
        if loss is LOSSES["npo"]:
            assert value.item() == pytest.approx(2 / beta * LOG2, rel=1e-9)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("name", "weight"), [("wga", lambda p: p**2), ("satimp", lambda p: p**2 * (1 - p) ** 3)])
def test_reweighted_ascent_pulls_each_token_as_ascent_does_times_its_weight(name, weight):
    settings = {"wga": {"beta": 2.0}, "satimp": {"beta1": 2.0, "beta2": 3.0}}[name]
    out = random_outputs(LOSSES[name], 4)
    gradients = []
    for loss in (LOSSES[name], lambda out, **_: out.logp.mean()):
        logits = out.logits.clone().requires_grad_()
        gradients += torch.autograd.grad(loss(replace(out, logits=logits), **settings), logits)
    torch.testing.assert_close(gradients[0], weight(out.logp.exp())[:, None] * gradients[1])


def test_ceu_lowers_the_true_logit_by_its_probability_and_spreads_it_over_the_others():
    """The gradient is p − q: p(y) for the true token y, and −p(v)·p(y)/(1 − p(y)) for any other token v."""
    out = tokens([P], [1])
    logits = out.logits.clone().requires_grad_()
    [gradient] = torch.autograd.grad(LOSSES["ceu"](replace(out, logits=logits)), logits)
    torch.testing.assert_close(gradient, torch.tensor([[-1 / 6, 1 / 4, -1 / 24, -1 / 24]], dtype=torch.float64))


def test_ceu_may_skip_the_first_tokens_of_each_answer():
    """Each answer begins with target 0, whose loss is 5/2·ln 2. Target 1 follows in two of them, with loss 5/3·ln 2.

    Skipped tokens count as 0 in the mean over all five tokens.
    """
    out = tokens([P, P, P, P, P], [0, 1, 0, 1, 0], [0, 0, 1, 1, 2])
    assert LOSSES["ceu"](out).item() == pytest.approx((3 * 5 / 2 + 2 * 5 / 3) / 5 * LOG2)
    assert LOSSES["ceu"](out, skip_first=1).item() == pytest.approx(2 * 5 / 3 / 5 * LOG2)
    assert LOSSES["ceu"](out, skip_first=2).item() == 0


def test_undial_is_at_rest_where_the_model_is_the_reference_with_the_true_logit_lowered():
    out = random_outputs(LOSSES["undial"], 5)
    goal = out.ref_logits.clone()
    goal[range(8), out.targets] -= 10
    logits = goal.requires_grad_()
    [gradient] = torch.autograd.grad(LOSSES["undial"](replace(out, logits=logits)), logits)
    assert gradient.abs().max() < 1e-12


def test_dpo_reads_the_first_half_as_true_answers_and_the_second_as_alternates():
    """The loss falls as an alternate becomes more likely, and rises as a true answer becomes more likely."""
    out = random_outputs(LOSSES["dpo"], 6)
    logits = out.logits.clone().requires_grad_()
    [gradient] = torch.autograd.grad(LOSSES["dpo"](replace(out, logits=logits)), logits)
    of_targets = gradient[range(8), out.targets]
    assert (of_targets[out.example < 2] > 0).all()
    assert (of_targets[out.example >= 2] < 0).all()


def test_kl_to_itself_has_value_and_gradient_zero():
    out = random_outputs(RETAIN_LOSSES["kl"], 2)
    logits = out.ref_logits.clone().requires_grad_()
    loss = RETAIN_LOSSES["kl"](replace(out, logits=logits))
    [gradient] = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


def test_rmu_is_zero_at_its_direction_which_has_entries_of_one_sign():
    out = states([[0.0] * 6] * 3)
    values = out.states.clone().requires_grad_()
    [gradient] = torch.autograd.grad(LOSSES["rmu"](replace(out, states=values)), values)
    goal = -gradient * 3 * 6 / 2  # the gradient of mean (h − g)² at h = 0 is −2 g / number of entries
    assert (goal > 0).all()
    assert goal[0].norm().item() == pytest.approx(6.5)
    assert LOSSES["rmu"](replace(out, states=goal)).item() == pytest.approx(0, abs=1e-12)
