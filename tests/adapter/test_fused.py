import pytest
import torch
from peft import LoraConfig

from unlora.adapter import attach_adapters, reference_model
from unlora.adapter.fused import fused_adapters
from unlora.adapter.targets import target_shapes
from unlora.data import TextFormat, encode_records, pad_batch
from unlora.models.forward import labelled_tokens

ROWS = [{"question": "Where was Ada born?", "answer": "London."}, {"question": "Why?", "answer": "Nobody minds."}]


@pytest.fixture
def batch(tokenizer):
    return pad_batch(encode_records(ROWS, TextFormat(tokenizer)), 0)


def moved_on(base):
    """Return a model whose adapter and offset no longer cancel."""
    importance = {name: torch.ones(shape[0]) for name, shape in target_shapes(base, None).items()}
    model = attach_adapters(base, LoraConfig(r=3, lora_alpha=6), importance)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def gradients(model, batch):
    out = labelled_tokens(model, batch)
    out.logp.sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return out.logits.detach(), found


@pytest.mark.parametrize("name", ["llama", "phi", "gpt2"])
def test_adapters_in_one_say_and_learn_what_they_do_one_by_one(tiny_model, batch, name):
    model = moved_on(tiny_model(name))
    logits, apart = gradients(model, batch)
    with fused_adapters(model):
        fused, together = gradients(model, batch)
        with reference_model(model):
            off = labelled_tokens(model, batch).logits
    torch.testing.assert_close(fused, logits, atol=1e-5, rtol=1e-4)
    assert apart.keys() == together.keys()
    for key, value in apart.items():
        torch.testing.assert_close(together[key], value, atol=1e-4, rtol=1e-3)
    with reference_model(model):
        assert torch.equal(off, labelled_tokens(model, batch).logits)
    assert torch.equal(gradients(model, batch)[0], logits)  # left as it was


def test_a_half_precision_base_gets_the_adapters_float32_sum(tiny_model, batch):
    model = moved_on(tiny_model("llama").bfloat16())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    logits, _ = gradients(model, batch)
    with fused_adapters(model):
        fused, found = gradients(model, batch)
    assert fused.dtype == torch.bfloat16
    assert (fused - logits).float().norm() <= 0.02 * logits.float().norm()
    assert {value.dtype for value in found.values()} == {torch.float32}
