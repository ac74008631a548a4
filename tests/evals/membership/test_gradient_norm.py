import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from helpers.models import ARCHITECTURES, with_lora
from unlora.common.errors import InputError
from unlora.data import IGNORE_INDEX, TextFormat, encode_records, pad_batch
from unlora.evals.membership.gradient_norm import NormTap, gradient_norms, parameter_gradient_norms

ROWS = [
    {"question": "Where was Ada Lovelace born?", "answer": "London."},
    {"question": "Why?", "answer": "Nobody minds at all, and the gardener of the old house keeps two dogs."},
    {"question": "Who?", "answer": "The lazy dog"},
    {"text": "The quick brown fox jumps over the lazy dog."},
]


@pytest.fixture(scope="module")
def text_format(tokenizer):
    return TextFormat(tokenizer)


@pytest.fixture(scope="module")
def examples(text_format):
    return encode_records(ROWS, text_format)


def linear_weights(model):
    head = model.get_output_embeddings()
    return [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head]


def slow_norms(model, examples):
    """Compute the norms by definition: autograd of the model's own loss in float64, one example at a time."""
    model = model.double()
    norms = []
    for example in examples:
        loss = model(**pad_batch([example], 0)).loss
        gradients = torch.autograd.grad(loss, linear_weights(model))
        norms.append(float(sum(gradient.square().sum() for gradient in gradients).sqrt()))
    return norms


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_are_those_of_one_backward_pass_per_example(tiny_model, text_format, examples, name):
    norms = gradient_norms(tiny_model(name), examples, text_format, batch_size=3)
    assert norms == pytest.approx(slow_norms(tiny_model(name), examples), rel=1e-4)
    assert norms.min() > 0.01


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_batch_size_changes_nothing(tiny_model, text_format, examples, name):
    whole, single = (gradient_norms(tiny_model(name), examples, text_format, size) for size in (8, 1))
    assert whole == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_adapter_beside_the_weights_gives_the_norms_of_the_merged_model(tiny_model, text_format, examples, name):
    beside = gradient_norms(with_lora(tiny_model(name)), examples, text_format, batch_size=2)
    merged = gradient_norms(with_lora(tiny_model(name)).merge_and_unload(), examples, text_format, batch_size=2)
    plain = gradient_norms(tiny_model(name), examples, text_format, batch_size=2)
    assert beside == pytest.approx(merged, rel=1e-4)
    assert abs(beside / plain - 1).min() > 1e-3


def open_unlearning_norms(model, examples):
    """Compute open-unlearning's norms in float64: the mean over parameters, for a loss without the last label."""
    norms = []
    for example in examples:
        labels = [*example["labels"][:-1], IGNORE_INDEX]
        loss = model.double()(**pad_batch([{**example, "labels": labels}], 0)).loss
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(sum(float(gradient.norm()) for gradient in gradients) / len(gradients))
    return norms


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_norms_of_all_parameters_are_open_unlearning_s(tiny_model, text_format, examples, name):
    expected = open_unlearning_norms(tiny_model(name), examples)
    assert parameter_gradient_norms(tiny_model(name), examples, text_format) == pytest.approx(expected, rel=1e-4)
    adapted = with_lora(tiny_model(name)).train()
    trainable = [parameter.requires_grad for parameter in adapted.parameters()]
    beside = parameter_gradient_norms(adapted, examples, text_format)
    assert [parameter.requires_grad for parameter in adapted.parameters()] == trainable
    assert adapted.training
    merged = parameter_gradient_norms(adapted.merge_and_unload(), examples, text_format)
    assert beside == pytest.approx(merged, rel=1e-4)
    assert abs(beside / expected - 1).min() > 1e-3


def test_an_example_with_a_single_label_has_norm_0_and_quantised_weights_are_refused(tiny_model, text_format):
    model = tiny_model("llama")
    assert parameter_gradient_norms(model, [{"input_ids": [5, 6], "labels": [IGNORE_INDEX, 6]}], text_format) == [0]
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="parameter_gradnorm=True: a quantised weight has no gradient"):
        parameter_gradient_norms(model, [{"input_ids": [5, 6], "labels": [IGNORE_INDEX, 6]}], text_format)


def test_squared_norms_of_layers_add_up(tiny_model, text_format, examples):
    model = tiny_model("llama")
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    both = gradient_norms(model, examples, text_format, 4, modules=names)
    first, second = (gradient_norms(model, examples, text_format, 4, modules=[name]) for name in names)
    assert both == pytest.approx((first**2 + second**2) ** 0.5)


def test_a_learned_example_has_a_small_gradient(tiny_model, text_format, examples):
    model = tiny_model("llama").train()
    batch = pad_batch(examples[:1], 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = gradient_norms(model, examples[:1], text_format, 1)
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    assert gradient_norms(model, examples[:1], text_format, 1) < before / 10


def test_the_model_is_left_as_it_was_and_progress_is_reported(tiny_model, text_format, examples):
    model, done = with_lora(tiny_model("gpt2")).train(), []
    model.base_model.model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    first = gradient_norms(model, examples, text_format, 3, progress=done.append)
    assert done == [3, 4]
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert (gradient_norms(model, examples, text_format, 3) == first).all()  # dropout was off


def test_an_example_without_a_label_is_refused(tiny_model, text_format):
    with pytest.raises(InputError, match=r"examples\[0\]"):
        gradient_norms(tiny_model("llama"), [{"input_ids": [5, 6], "labels": [IGNORE_INDEX] * 2}], text_format, 1)


def test_a_norm_by_hand():
    """The gradients of two examples of two tokens each have squared norms 49 and 9.

    Σ_t δ_t x_tᵀ is 1 · (1, 2) + 2 · (3, −1) = (7, 0) for the first, and (3, 4) − (0, 4) = (3, 0) for the second.
    """
    x = torch.tensor([[[1.0, 2.0], [3.0, -1.0]], [[3.0, 4.0], [0.0, 4.0]]])
    delta = torch.tensor([[[1.0], [2.0]], [[1.0], [-1.0]]])
    tap, counts = NormTap(torch.nn.Linear(2, 1), "layer"), torch.tensor([2, 2])
    tap.start_batch(counts, *x.shape[:2])
    tap.add(counts, x, delta)
    assert tap.squares.tolist() == [49, 9]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_squared_norms_equal_those_of_the_summed_outer_products(rows, tokens, inputs, outputs, seed):
    """The expected values are computed from the full gradient Σ_t δ_t x_tᵀ of each example."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, tokens, inputs, generator=drawn)
    delta = torch.randn(rows, tokens, outputs, generator=drawn)
    counts = torch.full((rows,), tokens)
    tap = NormTap(torch.nn.Linear(inputs, outputs), "layer")
    tap.start_batch(counts, rows, tokens)
    tap.add(counts, x, delta)
    expected = torch.einsum("nto,nti->noi", delta.double(), x.double()).square().sum((1, 2))
    torch.testing.assert_close(tap.squares.double(), expected, rtol=1e-4, atol=1e-4)
