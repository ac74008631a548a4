import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from unlora.forward import LabelledTokens
from unlora.losses import LOSSES, NO_RETAIN, RETAIN_LOSSES, check_losses

ALL = {**LOSSES, **RETAIN_LOSSES}
LOG2 = math.log(2)
P = [0.5, 0.25, 0.125, 0.125]  # of the vocabulary 0..3


def tokens(probabilities, targets, example=None, **reference):
    """`LabelledTokens` with given probabilities; every token is its own example unless said otherwise."""
    example = list(range(len(targets))) if example is None else example
    logits = torch.tensor(probabilities, dtype=torch.float64).log()
    return LabelledTokens(logits, torch.tensor(targets), torch.tensor(example), max(example) + 1, **reference)


def hand_ascent():
    """Tokens of probability 1/2 and 1/4: mean log p = (−1 − 2)/2·ln 2."""
    return tokens([P, P], [0, 1]), {}, -1.5 * LOG2


def hand_ihl():
    """True 1/2 beside runner-up 1/4: 1.25. True 1/8 beside runner-up 1/2: 0.625. Mean 0.9375."""
    return tokens([P, P], [0, 2]), {}, 0.9375


def hand_npo():
    """β = 1/2, d = log π − log π_ref.

    Example 0: tokens of probability 1/2 and 1/4, reference 1/2: d = −2 ln 2, −log σ(−βd) = ln(1 + 2^−1) = ln 1.5.
    Example 1: a token of 1/2, reference 1/4: d = ln 2, −log σ(−βd) = ln(1 + √2).
    (2/β)·mean = 4·(ln 1.5 + ln(1 + √2))/2.
    """
    out = tokens([P, P, P], [0, 1, 0], [0, 0, 1], ref_logp=torch.tensor([-LOG2, -2 * LOG2], dtype=torch.float64))
    return out, {"beta": 0.5}, 2 * (math.log(1.5) + math.log(1 + math.sqrt(2)))


def hand_nll():
    """The negative of ascent."""
    return tokens([P, P], [0, 1]), {}, 1.5 * LOG2


def hand_kl():
    """KL(ref ‖ uniform) = 1/2·ln 2 + 1/4·0 + 2·1/8·(−ln 2) = ln 2 / 4, and 0 where both are equal; mean ln 2 / 8."""
    reference = torch.tensor([P, P], dtype=torch.float64).log()
    return tokens([[0.25] * 4, P], [0, 1], ref_logits=reference), {}, LOG2 / 8


HAND = {"ga": hand_ascent, "gd": hand_ascent, "ihl": hand_ihl, "npo": hand_npo, "nll": hand_nll, "kl": hand_kl}


# The same in float64, token by token, from the definition.


def softmax(row):
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def slow_logp(out):
    rows = out.logits.double().numpy()
    return [math.log(softmax(row)[target]) for row, target in zip(rows, out.targets.tolist(), strict=True)]


def slow_ascent(out):
    return np.mean(slow_logp(out))


def slow_ihl(out):
    values = []
    for row, target in zip(out.logits.double().numpy(), out.targets.tolist(), strict=True):
        p = softmax(row)
        values.append(max(0, 1 + p[target] - max(p[v] for v in range(len(p)) if v != target)))
    return np.mean(values)


def slow_npo(out, beta=0.1):
    sums = np.zeros(out.examples)
    for example, value in zip(out.example.tolist(), slow_logp(out), strict=True):
        sums[example] += value
    gaps = sums - out.ref_logp.double().numpy()
    return -2 / beta * np.mean([math.log(1 / (1 + math.exp(beta * gap))) for gap in gaps])


def slow_nll(out):
    return -slow_ascent(out)


def slow_kl(out):
    values = []
    for row, ref_row in zip(out.logits.double().numpy(), out.ref_logits.double().numpy(), strict=True):
        p, q = softmax(row), softmax(ref_row)
        values.append(sum(q[v] * math.log(q[v] / p[v]) for v in range(len(p))))
    return np.mean(values)


SLOW = {"ga": slow_ascent, "gd": slow_ascent, "ihl": slow_ihl, "npo": slow_npo, "nll": slow_nll, "kl": slow_kl}


def random_tokens(seed, dtype=torch.float64):
    """Three examples of 2, 3 and 1 tokens over a vocabulary of 11."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.randint(11, (6,), generator=generator)
    example = torch.tensor([0, 0, 1, 1, 1, 2])
    reference = {"ref_logp": 3 * normal(3).float() - 6, "ref_logits": 2 * normal(6, 11)}
    return LabelledTokens(2 * normal(6, 11), targets, example, 3, **reference)


def test_every_loss_in_the_tables_is_tested_here():
    assert set(HAND) == set(SLOW) == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_loss_equals_hand_arithmetic(name):
    out, settings, expected = HAND[name]()
    assert ALL[name].function(out, **settings).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ALL)
def test_loss_equals_its_definition_token_by_token(name, seed):
    out = random_tokens(seed)
    assert ALL[name].function(out).item() == pytest.approx(SLOW[name](out), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ALL)
def test_lower_precision_is_computed_in_float32(name, dtype):
    out = random_tokens(0, dtype)
    loss = ALL[name].function(out)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(SLOW[name](out), rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_gradient_equals_finite_differences(name):
    out = random_tokens(3)
    logits = out.logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ALL[name].function(replace(out, logits=x)), [logits])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("height", [50.0, 3000.0, -50.0, -3000.0])
@pytest.mark.parametrize("name", ALL)
def test_loss_and_gradient_are_finite_for_a_certain_and_for_an_impossible_token(name, height, dtype):
    """The true token's logit is `height` above or below all others: p is 1 or 0 to the last digit."""
    targets = torch.tensor([1, 2, 3])
    logits = torch.zeros(3, 6, dtype=dtype)
    logits[range(3), targets] = height
    logits.requires_grad_()
    reference = {"ref_logp": torch.tensor([-5.0, 0.0]), "ref_logits": torch.randn(3, 6).to(dtype)}
    loss = ALL[name].function(LabelledTokens(logits, targets, torch.tensor([0, 0, 1]), 2, **reference))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_inverted_hinge_is_bounded_by_0_and_2_where_ascent_is_not():
    certain, impossible = [torch.tensor([[sign * 100.0, 0.0]]) for sign in (1, -1)]
    of = [LabelledTokens(x, torch.tensor([0]), torch.tensor([0]), 1) for x in (certain, impossible)]
    assert [LOSSES["ihl"].function(out).item() for out in of] == pytest.approx([2, 0], abs=1e-6)
    assert LOSSES["ga"].function(of[1]).item() == pytest.approx(-100)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_npo_begins_as_gradient_ascent_on_the_summed_log_likelihood(beta):
    """At step 0 π = π_ref: the loss is −(2/β)·ln σ(0) = (2/β)·ln 2, and d/dx (2/β)·ln(1 + e^{βx}) = 2σ(0) = 1."""
    out = random_tokens(1)
    gradients = []
    for loss in (LOSSES["npo"].function, lambda out, beta: out.example_logp.mean()):
        logits = out.logits.clone().requires_grad_()
        start = replace(out, logits=logits, ref_logp=out.example_logp.detach())
        value = loss(start, beta=beta)
        gradients += torch.autograd.grad(value, logits)
        if loss is LOSSES["npo"].function:
            assert value.item() == pytest.approx(2 / beta * LOG2, rel=1e-9)
    torch.testing.assert_close(*gradients)


def test_kl_to_itself_has_value_and_gradient_zero():
    out = random_tokens(2)
    logits = out.ref_logits.clone().requires_grad_()
    loss = RETAIN_LOSSES["kl"].function(replace(out, logits=logits))
    [gradient] = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_a_known_loss_with_its_own_settings_has_no_problem(name):
    assert check_losses(name, None, {}) == []
    assert check_losses(name, NO_RETAIN, LOSSES[name].settings) == []


def test_settings_are_the_functions_own_arguments():
    assert LOSSES["npo"].settings == {"beta": 0.1}
    assert LOSSES["ihl"].settings == {}


@pytest.mark.parametrize(
    ("loss", "retain_loss", "settings", "messages"),
    [
        ("ihll", None, {}, ["loss='ihll'", "did you mean 'ihl'"]),
        ("ihl", "nl", {}, ["retain_loss='nl'", "did you mean 'nll'"]),
        ("npo", None, {"betta": 0.1}, ["loss_kwargs='betta'", "did you mean 'beta'"]),
        ("ihl", None, {"beta": 0.1}, ["loss_kwargs='beta'", "'ihl' has no settings"]),
        ("npo", None, {"beta": 0}, ["loss_kwargs['beta']=0", "positive"]),
        ("npo", None, {"beta": "0.1"}, ["loss_kwargs['beta']='0.1'", "positive"]),
        ("npo", None, {"beta": math.nan}, ["loss_kwargs['beta']=nan", "positive"]),
        ("ga", "nll", {}, ["retain_loss='nll'", "without a retain term", "use 'gd'"]),
        ("ga", "kl", {}, ["retain_loss='kl'", "without a retain term", "use 'gd'"]),
    ],
)
def test_a_wrong_choice_of_losses_is_one_problem_with_its_fix(loss, retain_loss, settings, messages):
    [problem] = check_losses(loss, retain_loss, settings)
    assert all(message in str(problem) for message in messages)


def test_all_wrong_choices_are_told_at_once():
    assert [problem.argument for problem in check_losses("ihll", "nl", {})] == ["loss", "retain_loss"]
    problems = check_losses("npo", "nl", {"betta": 1, "beta": -1})
    assert [problem.argument for problem in problems] == ["retain_loss", "loss_kwargs", "loss_kwargs['beta']"]
