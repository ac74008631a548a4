import pytest
import torch
from peft import LoraConfig, get_peft_model

from unlora.adapter import attach_adapters, reference_model
from unlora.adapter.fused import fused_adapters
from unlora.adapter.targets import target_shapes
from unlora.data import TextFormat, encode_records, pad_batch
from unlora.evals.scoring import evaluating
from unlora.models.forward import labelled_tokens
from unlora.models.memory import enable_checkpointing

ROWS = [{"question": "Where was Ada born?", "answer": "London."}, {"question": "Why?", "answer": "Nobody minds."}]


@pytest.fixture
def batch(tokenizer):
    return pad_batch(encode_records(ROWS, TextFormat(tokenizer)), 0)


def start(base):
    """Return an importance of 1 for every row of every layer."""
    return {name: torch.ones(shape[0]) for name, shape in target_shapes(base, None).items()}


def perturbed(base):
    """Return a model whose adapter and offset no longer cancel."""
    model = attach_adapters(base, LoraConfig(r=3, lora_alpha=6), start(base))
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
def test_fused_adapters_have_the_outputs_and_gradients_of_separate_ones(tiny_model, batch, name):
    model = perturbed(tiny_model(name))
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
    assert torch.equal(gradients(model, batch)[0], logits)  # the model runs as before


def test_a_half_precision_base_gets_the_sum_of_float32_adapters(tiny_model, batch):
    model = perturbed(tiny_model("llama").bfloat16())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    logits, _ = gradients(model, batch)
    with fused_adapters(model):
        fused, found = gradients(model, batch)
    assert fused.dtype == torch.bfloat16
    assert (fused - logits).float().norm() <= 0.02 * logits.float().norm()
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_bfloat16_keeps_a_change_that_is_small_beside_the_start(tiny_model):
    """Computed as B·A − B₀·A₀, the change would be lost, because bfloat16 rounds each product to 1/256 of its size."""
    model = attach_adapters(tiny_model("llama").bfloat16(), LoraConfig(r=4, lora_alpha=8), start(tiny_model("llama")))
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.get_base_layer().weight.zero_()
        for factors in (layer.lora_A, layer.lora_B):
            weight = factors["unlearn"].weight
            weight.mul_(1 + 1e-3 * torch.randn_like(weight))
    inputs = torch.randn(5, layer.in_features).bfloat16()
    a, b, a0, b0 = (f[n].weight.double() for n in ("unlearn", "offset") for f in (layer.lora_A, layer.lora_B))
    exact = layer.scaling["unlearn"] * inputs.double() @ (b @ a + b0 @ a0).T
    with fused_adapters(model), torch.no_grad():
        found = layer(inputs).double()
    assert 1e-4 < exact.norm() / (inputs.double() @ (b @ a).T).norm() < 1e-2
    assert (found - exact).norm() <= 0.01 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_adapters_work_under_autocast(tiny_model, batch, dtype):
    model = perturbed(tiny_model("llama"))
    logits, apart = gradients(model, batch)
    with fused_adapters(model), torch.autocast("cpu", dtype):
        found, together = gradients(model, batch)
    assert (found - logits).float().norm() <= 0.03 * logits.norm()
    for key, value in apart.items():
        assert together[key].dtype == torch.float32
        assert (together[key] - value).norm() <= 0.1 * value.norm(), key


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_are_run_again_in_the_backward_pass_have_the_same_adapters(tiny_model, batch, reentrant):
    """The reference model, whose adapters are switched off, runs between the forward and the backward pass."""
    model = perturbed(tiny_model("llama"))
    _, expected = gradients(model, batch)
    model.enable_input_require_grads()
    enable_checkpointing(model, {"use_reentrant": reentrant})
    model.train()
    with fused_adapters(model):
        out = labelled_tokens(model, batch)
        with reference_model(model):
            labelled_tokens(model, batch)
        out.logp.sum().backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-3)


def test_layers_with_other_kinds_of_adapters_run_as_they_always_do(tiny_model, batch):
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=3, target_modules=["q_proj", "v_proj"], use_dora=True))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        model.eval()
        expected = labelled_tokens(model, batch).logits
        with fused_adapters(model):
            assert torch.equal(labelled_tokens(model, batch).logits, expected)


def test_fused_adapters_may_be_nested(tiny_model, batch):
    model = perturbed(tiny_model("llama"))
    logits, expected = gradients(model, batch)
    with fused_adapters(model):
        with evaluating(model):
            torch.testing.assert_close(labelled_tokens(model, batch).logits, logits, atol=1e-5, rtol=1e-4)
        _, found = gradients(model, batch)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-4, rtol=1e-3)
    assert not any("forward" in vars(module) for module in model.modules())
