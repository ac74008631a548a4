from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig

from helpers.models import ARCHITECTURES
from helpers.moments import F_FORGET, F_RETAIN, FORGET, LAYER, RETAIN, moments_of
from unlora.adapter.offset import lora_layers
from unlora.adapter.settings import UNLEARN
from unlora.importance import Moments, attach_probe, gradient_moments, relative_importance
from unlora.importance.convergence import rank_correlation
from unlora.importance.vila import FIRST_CHECK, fisher, retain_moments, row_importance
from unlora.settings import ImportanceConfig

LORA = LoraConfig(r=4, lora_alpha=8)
IDS = torch.tensor([[5, 9, 60, 7, 33, 12], [40, 41, 42, 43, 44, 45]])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_vila_measures_no_more_of_the_retain_sample_than_convergence_requires(measurement):
    """Each slice of the retain sample has the same gradients, so the importance converges after the first 128."""
    given = measurement(init="vila")
    seen = []

    def alike(part):
        seen.extend(range(1000)[part])
        return given.retain()

    stopped = row_importance(replace(given, retain=alike, retain_size=1000))
    assert sorted(seen) == list(range(128))
    torch.testing.assert_close(stopped, row_importance(given))
    exact = replace(given, config=ImportanceConfig(retain_samples=1000), retain_size=1000)
    torch.testing.assert_close(row_importance(exact), stopped)  # measures the whole sample in one call


def test_vila_is_the_relative_importance_of_moments_at_the_probe(measurement):
    given = measurement(init="vila", smoothing="absolute", epsilon=1e-3, sigma=0.1)
    rows = row_importance(given)
    probe = attach_probe(given.model, LORA, sigma=0.1)
    moments = (gradient_moments(probe, batches()) for batches in (given.forget, given.retain))
    expected = relative_importance(*moments, "vila", smoothing="absolute", epsilon=1e-3, rows=True)
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_probe_is_random_and_the_model_with_it_is_the_base(tiny_model, name):
    expected = logits(tiny_model(name))
    model = attach_probe(tiny_model(name), LORA, sigma=0.05, seed=1)
    assert (logits(model) - expected).abs().max() <= 1e-4
    values = torch.cat([p.flatten() for n, p in model.named_parameters() if f".{UNLEARN}." in n])
    assert values.std().item() == pytest.approx(0.05, rel=0.05)
    assert values.mean().abs() < 0.005
    assert trainable(model) == {name for name, _ in model.named_parameters() if f".{UNLEARN}." in name}


def test_without_the_offset_the_same_random_product_disturbs_the_model(tiny_model):
    """As in VILA's released code: the model is the base with W + s·B·A in place of W."""
    cancelled = attach_probe(tiny_model("llama"), LORA, sigma=0.2, seed=1)
    probe = attach_probe(tiny_model("llama"), LORA, sigma=0.2, seed=1, offset=False)
    assert probe.active_adapters == [UNLEARN]
    states = cancelled.state_dict(), probe.state_dict()
    assert all(torch.equal(value, states[0][key]) for key, value in states[1].items())
    disturbed = tiny_model("llama")
    with torch.no_grad():
        for name, layer in lora_layers(probe):
            product = layer.lora_B[UNLEARN].weight @ layer.lora_A[UNLEARN].weight
            disturbed.get_submodule(name).weight.add_(8 / 4 * product)
    torch.testing.assert_close(logits(probe), logits(disturbed), rtol=1e-4, atol=1e-4)
    assert (logits(probe) - logits(tiny_model("llama"))).abs().max() > 0.1
    assert trainable(probe) == {name for name, _ in probe.named_parameters() if f".{UNLEARN}." in name}


def test_the_probe_depends_on_its_seed_alone(tiny_model):
    torch.manual_seed(1)
    state = attach_probe(tiny_model("llama"), LORA, seed=1).state_dict()
    again = attach_probe(tiny_model("llama"), LORA, seed=1).state_dict()
    other = attach_probe(tiny_model("llama"), LORA, seed=2).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    assert not any(torch.equal(value, other[key]) for key, value in state.items() if f".{UNLEARN}." in key)


def test_the_information_of_a_weight_is_the_product_of_the_factors_variances():
    [(name, information)] = fisher(moments_of(**FORGET), centred=True)
    assert name == "layers.0.q_proj"  # the module's name in the base model
    torch.testing.assert_close(information, F_FORGET)
    [(_, information)] = fisher(moments_of(**RETAIN), centred=True)
    torch.testing.assert_close(information, F_RETAIN)


def test_the_information_of_two_examples_from_their_gradients():
    """F = Σ V_B·V_A over the two rank components. Each example has one token.

    Component 1: A has gradients 1 and 3, so V_A = (1 + 9)/2 − 2² = 1. B has 0 and −2, so V_B = 4/2 − 1² = 1.
    Component 2: A has gradients 5 and 5, so V_A = 0. B has 1 and 7, so V_B = 25 − 16 = 9. F = 1·1 + 9·0 = 1.
    """
    gradients = {"A": torch.tensor([[[1.0], [5.0]], [[3.0], [5.0]]]), "B": torch.tensor([[[0.0, 1.0]], [[-2.0, 7.0]]])}
    mean = {LAYER.format(0, factor): g.mean(0) for factor, g in gradients.items()}
    second = {LAYER.format(0, factor): g.square().mean(0) for factor, g in gradients.items()}
    [(_, information)] = fisher(Moments(mean, second, tokens=2, examples=2), centred=True)
    assert information.item() == pytest.approx(1.0)


def test_information_that_is_not_centred_is_the_product_of_mean_squares():
    """The mean squares are [3, 0.5] for A and [2, 3] for B."""
    [(_, information)] = fisher(moments_of(**FORGET), centred=False)
    assert information.tolist() == [[6.0, 1.0], [9.0, 1.5]]


def one_parameter(values):
    """Return the moments of one parameter with gradients `values` [examples, rows]. Each example has one token."""
    values = torch.as_tensor(values)
    return Moments({"layer": values.mean(0)}, {"layer": values.square().mean(0)}, len(values), len(values))


class Sample:
    """A retain sample with given gradients [examples, rows], which records the examples that were measured."""

    def __init__(self, values):
        self.values, self.seen = values, []

    def measure(self, part):
        self.seen += range(len(self.values))[part]
        return one_parameter(self.values[part])

    def until(self, threshold):
        return retain_moments(self.measure, len(self.values), second_moments, threshold)


def second_moments(moments):
    return {"layer": moments.second["layer"]}


def noisy(size, noise, rows=40, seed=0):
    """Return gradients [size, rows] whose scale rises from 1 to 2 over the rows, with noise in proportion to it."""
    drawn = np.random.default_rng(seed)
    scale = np.linspace(1, 2, rows)
    return torch.from_numpy(scale * (1 + noise * drawn.standard_normal((size, rows))))


@pytest.mark.parametrize("size", [1, 2, FIRST_CHECK, FIRST_CHECK + 1, FIRST_CHECK + 2, 384, 515])
def test_a_sample_that_never_converges_is_measured_completely_and_once(size):
    sample = Sample(noisy(size, 3.0))
    found, whole = sample.until(0.999999), one_parameter(sample.values)
    assert sorted(sample.seen) == list(range(size))
    assert (found.tokens, found.examples) == (size, size)
    for name in ("mean", "second"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))


def test_the_retain_pass_ends_as_soon_as_the_halves_agree():
    sample = Sample(noisy(10 * FIRST_CHECK, 0.0))
    found = sample.until(0.98)
    assert sorted(sample.seen) == list(range(FIRST_CHECK))
    torch.testing.assert_close(found.mean, one_parameter(sample.values[:FIRST_CHECK]).mean)


def test_more_noise_takes_more_examples_and_the_estimate_holds():
    sizes = []
    for noise in (0.1, 1.0):
        sample = Sample(noisy(64 * FIRST_CHECK, noise))
        found = second_moments(sample.until(0.98))["layer"]
        sizes.append(len(sample.seen))
        truth = np.linspace(1, 2, 40)
        assert rank_correlation(found.numpy(), truth) > 0.96
    assert sizes == sorted(set(sizes))
