import pytest
import torch
from peft import LoraConfig

from helpers.models import ARCHITECTURES
from helpers.moments import F_FORGET, F_RETAIN, FORGET, LAYER, RETAIN, moments_of
from unlora.adapter.offset import lora_layers
from unlora.adapter.settings import UNLEARN
from unlora.importance import Moments, attach_probe, gradient_moments, relative_importance
from unlora.importance.vila import fisher, row_importance

LORA = LoraConfig(r=4, lora_alpha=8)
IDS = torch.tensor([[5, 9, 60, 7, 33, 12], [40, 41, 42, 43, 44, 45]])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


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
