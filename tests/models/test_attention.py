"""The context manager that smooths the attention of a model."""

import pytest
import torch

from unlora.models.attention import smoothed_attention

IDS = torch.tensor([[5, 9, 60, 7, 33, 12]])


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def test_dividing_the_scores_is_dividing_the_queries(tiny_model):
    model = tiny_model("llama")
    with smoothed_attention(model, 1.75) as layers:
        smoothed = logits(model)
    assert layers == len(model.model.layers)
    assert (smoothed - logits(model)).abs().max() > 1e-4
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data /= 1.75
    torch.testing.assert_close(smoothed, logits(model), rtol=1e-4, atol=1e-5)


def test_attention_is_restored_even_after_an_exception(tiny_model):
    model = tiny_model("llama")
    before = logits(model)
    with pytest.raises(ZeroDivisionError), smoothed_attention(model, 2.0):
        raise ZeroDivisionError
    assert torch.equal(logits(model), before)
