import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GradientCheckpointingLayer, OPTConfig
from transformers.pytorch_utils import Conv1D

from helpers.models import ARCHITECTURES, tiny_config
from unlora.common.errors import InputError
from unlora.data import IGNORE_INDEX, TextFormat, encode_records, pad_batch
from unlora.data.batching import BatchLimit
from unlora.data.padding import Batches
from unlora.importance import attach_probe, gradient_buffer, gradient_moments, moments
from unlora.models.memory import enable_checkpointing

ROWS = [
    {"question": "Where was Ada Lovelace born?", "answer": "London."},
    {"question": "Why?", "answer": "Nobody minds at all, and the gardener of the old house keeps two dogs."},
    {"question": "Who?", "answer": "The lazy dog"},
    {"text": "The quick brown fox jumps over the lazy dog."},
]
DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout")


@pytest.fixture(scope="module")
def examples(tokenizer):
    return encode_records(ROWS, TextFormat(tokenizer))


def lora(base, **settings):
    """Return a LoRA model with both factors random, so that both have a gradient."""
    torch.manual_seed(1)
    transposed = base.config.model_type == "gpt2"
    settings = {"r": 3, "target_modules": "all-linear", "fan_in_fan_out": transposed, **settings}
    return get_peft_model(base, LoraConfig(init_lora_weights=False, **settings))


def with_dropout(name, tokenizer, checkpointing=None):
    """Return a LoRA model in training mode, with every dropout of its architecture at 0.3."""
    config = tiny_config(name, len(tokenizer))
    for field in DROPOUTS:
        if hasattr(config, field):
            setattr(config, field, 0.3)
    torch.manual_seed(0)
    model = lora(AutoModelForCausalLM.from_config(config))
    if checkpointing is not None:
        enable_checkpointing(model, {"use_reentrant": checkpointing})
    return model.train()


def count_calls(layer, calls):
    """Append to `calls` whenever the layer runs. Its own hooks do not see it run again in the backward pass."""
    first = next(layer.children())
    first.register_forward_pre_hook(lambda *args: calls.append(first))


def batches(examples, size=2, side="right"):
    return [pad_batch(examples[i : i + size], 0, side) for i in range(0, len(examples), size)]


def one_by_one(model, singles):
    """Return the moments by definition: one pass of autograd for each of `singles`, without dropout."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    first = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    second = {name: torch.zeros_like(value) for name, value in first.items()}
    total = 0
    for batch in singles:
        count = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        gradients = torch.autograd.grad(model(**batch).loss, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            first[name] += count * gradient.double()
            second[name] += count * gradient.double().square()
        total += count
    for module, mode in modes:
        module.training = mode
    return {n: v / total for n, v in first.items()}, {n: v / total for n, v in second.items()}, total


def assert_moments(moments, expected):
    mean, second, tokens = expected
    assert moments.tokens == tokens
    for ours, theirs in ((moments.mean, mean), (moments.second, second)):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert value.norm() > 0, name  # otherwise the comparison would prove nothing
            assert (ours[name].double() - value).norm() / value.norm() <= 1e-5, name


@pytest.fixture(scope="module")
def expected(tokenizer, examples):
    """Return a function from an architecture to the moments by definition, which computes them once each."""
    known = {}

    def of(name):
        if name not in known:
            known[name] = one_by_one(with_dropout(name, tokenizer), batches(examples, 1))
        return known[name]

    return of


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moments_are_those_of_single_example_gradients(tokenizer, examples, expected, name, side, checkpointing):
    """This holds with padding, with checkpointing, and for a model left in training mode with dropout."""
    model = with_dropout(name, tokenizer, checkpointing)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    calls = []
    for layer in layers:
        count_calls(layer, calls)
    moments = gradient_moments(model, batches(examples, 2, side))
    assert_moments(moments, expected(name))
    assert moments.examples == len(examples)
    # There are two batches and two layers. A checkpointed layer runs again in the backward pass.
    assert len(layers) == 2
    assert len(calls) == 2 * len(layers) * (1 if checkpointing is None else 2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moments_at_the_probe_are_those_of_single_example_gradients(tiny_model, examples, name):
    model = attach_probe(tiny_model(name), LoraConfig(r=3, lora_alpha=6))
    expected = one_by_one(model, batches(examples, 1))
    assert_moments(gradient_moments(model, batches(examples, 4)), expected)
    assert all(".unlearn." in parameter for parameter in expected[0])


def opt(tokenizer, checkpointing=None, **settings):
    """Return an OPT model. Its layers apply dropout by the same training flag that switches checkpointing on."""
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, dropout=0.5,
        max_position_embeddings=256, word_embed_proj_dim=32, init_std=0.15, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = lora(AutoModelForCausalLM.from_config(config), **settings)
    if checkpointing is not None:
        enable_checkpointing(model, {"use_reentrant": checkpointing})
    return model.train()


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "non-reentrant"])
def test_dropout_that_a_layer_applies_itself_is_off_under_checkpointing_too(tokenizer, examples, checkpointing):
    model = opt(tokenizer, checkpointing, target_modules=["q_proj", "v_proj"])
    calls = []
    count_calls(model.base_model.model.model.decoder.layers[0], calls)
    moments = gradient_moments(model, batches(examples, 2))
    assert len(calls) == (2 if checkpointing is None else 4)
    assert_moments(moments, one_by_one(model, batches(examples, 1)))


def test_layers_that_see_all_examples_in_one_row_are_measured_like_others(tokenizer, examples):
    """OPT flattens [examples, tokens] before its feed-forward layers."""
    model = opt(tokenizer)
    assert_moments(gradient_moments(model, batches(examples, 2)), one_by_one(model, batches(examples, 1)))


class Routed(torch.nn.Module):
    """A module that runs a layer on every second token only."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, states):
        rows = states.flatten(0, 1)
        return torch.zeros_like(rows).index_add(0, torch.arange(0, len(rows), 2), self.layer(rows[::2])).view_as(states)


def test_a_layer_that_sees_only_some_tokens_is_measured_per_batch_and_refused_by_name_per_example(tiny_model, examples):
    base = tiny_model("llama")
    base.model.layers[1].mlp = Routed(torch.nn.Linear(32, 32, bias=False))
    model = lora(base)
    with pytest.raises(InputError, match=r"target_modules='.*mlp\.layer\.lora_B.*only some of the tokens.*leave this"):
        gradient_moments(model, batches(examples))
    moments = gradient_moments(model, batches(examples, 2), per="batch")
    assert_moments(moments, one_by_one(model, batches(examples, 2)))


@pytest.mark.parametrize("per", ["example", "batch"])
def test_a_batch_of_one_is_one_example(tiny_model, examples, per):
    model = lora(tiny_model("llama"))
    assert_moments(gradient_moments(model, batches(examples, 1), per=per), one_by_one(model, batches(examples, 1)))


@pytest.mark.parametrize("size", [1, 3, 4])
def test_moments_per_example_do_not_depend_on_the_batch_size(tiny_model, examples, size):
    model = lora(tiny_model("qwen"))
    one, other = (gradient_moments(model, batches(examples, n)) for n in (2, size))
    assert (one.tokens, one.examples) == (other.tokens, other.examples)
    for name in one.mean:
        torch.testing.assert_close(one.mean[name], other.mean[name], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(one.second[name], other.second[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_moments_per_batch_are_those_of_the_mean_loss_of_each_batch(tiny_model, examples, name):
    model = lora(tiny_model(name))
    moments = gradient_moments(model, batches(examples, 2), per="batch")
    assert_moments(moments, one_by_one(model, batches(examples, 2)))
    assert moments.examples == 2
    per_example = gradient_moments(model, batches(examples, 2))
    some = next(iter(moments.second))
    assert not torch.allclose(moments.second[some], per_example.second[some], rtol=0.01)


def test_rows_without_labels_count_for_nothing(tiny_model, examples):
    model = lora(tiny_model("llama"))
    batch = pad_batch(examples, 0)
    batch["labels"][1:3] = IGNORE_INDEX
    moments = gradient_moments(model, [batch])
    assert_moments(moments, one_by_one(model, batches([examples[0], examples[3]], 1)))
    assert moments.examples == 2


def test_names_and_shapes_are_those_of_the_trainable_factors(tiny_model, examples):
    model = lora(tiny_model("llama"))
    for name, parameter in model.named_parameters():
        if "layers.0" in name:
            parameter.requires_grad_(False)
    moments = gradient_moments(model, batches(examples))
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert {name: value.shape for name, value in moments.mean.items()} == shapes
    assert {name: value.shape for name, value in moments.second.items()} == shapes
    assert shapes
    assert not any("layers.0" in name for name in shapes)


def test_half_precision_factors_have_float32_moments(tiny_model, examples):
    model = lora(tiny_model("llama")).to(torch.bfloat16)
    moments = gradient_moments(model, batches(examples))
    assert {value.dtype for value in (*moments.mean.values(), *moments.second.values())} == {torch.float32}


def fingerprint(model):
    """Return everything about the model that a measurement might fail to restore."""
    return (
        {name: (p.requires_grad, p.grad, p._version) for name, p in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
    )


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found(tokenizer, examples, checkpointing, fails):
    model = with_dropout("llama", tokenizer, checkpointing)
    model.base_model.model.model.layers[1].eval()  # so that not all modules are in the same mode
    next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)
    before = fingerprint(model)
    if fails:
        bad = batches(examples)
        bad[1]["input_ids"] += 100_000
        with pytest.raises(IndexError):
            gradient_moments(model, bad)
    else:
        gradient_moments(model, batches(examples))
    assert fingerprint(model) == before
    assert all(grad is None for _, grad, _ in before[0].values())


def test_batches_may_come_from_a_generator(tiny_model, examples):
    model = lora(tiny_model("llama"))
    assert gradient_moments(model, (batch for batch in batches(examples))).examples == len(examples)


def test_variance_is_the_second_moment_less_the_squared_mean_and_never_negative(tiny_model, examples):
    model = lora(tiny_model("llama"))
    [single] = batches(examples[:1])
    moments = gradient_moments(model, [single, single])  # equal gradients: no variance beyond rounding
    for name, second in moments.second.items():
        assert (moments.variance(name) >= 0).all()
        assert moments.variance(name).max() <= 1e-5 * second.max()
    spread = gradient_moments(model, batches(examples))
    name = next(iter(spread.mean))
    torch.testing.assert_close(spread.variance(name), (spread.second[name] - spread.mean[name] ** 2).clamp(min=0))
    assert spread.variance(name).max() > 0.01 * spread.second[name].max()


def test_a_model_without_a_trainable_factor_is_refused(tiny_model, examples):
    with pytest.raises(InputError, match="model='LlamaForCausalLM': no LoRA factor requires a gradient"):
        gradient_moments(tiny_model("llama"), batches(examples))
    frozen = lora(tiny_model("llama")).requires_grad_(False)
    with pytest.raises(InputError, match="no LoRA factor requires a gradient"):
        gradient_moments(frozen, batches(examples))


@pytest.mark.parametrize("per", ["example", "batch"])
def test_batches_without_labels_are_refused(tiny_model, examples, per):
    batch = pad_batch(examples, 0)
    batch["labels"][:] = IGNORE_INDEX
    for given in ([batch], []):
        with pytest.raises(InputError, match="batches='0 labelled tokens'"):
            gradient_moments(lora(tiny_model("llama")), given, per=per)


def test_an_unknown_granularity_is_refused_with_a_suggestion(tiny_model, examples):
    with pytest.raises(InputError, match=r"per='exampel'.*did you mean 'example'"):
        gradient_moments(lora(tiny_model("llama")), batches(examples), per="exampel")


def test_a_layer_that_runs_twice_is_refused_by_name(tiny_model, examples):
    base = tiny_model("llama")
    base.model.layers[1] = base.model.layers[0]
    model = lora(base)
    before = fingerprint(model)
    with pytest.raises(InputError, match=r"target_modules='.*lora_.*more than once"):
        gradient_moments(model, batches(examples))
    assert fingerprint(model) == before


def full_weights(model):
    """Freeze all parameters except the weights of the linear layers, without the head, and return these layers."""
    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head}
    model.requires_grad_(False)
    for module in linear.values():
        module.weight.requires_grad_(True)
    return linear


@pytest.mark.parametrize("block", [2**26, 2000], ids=["at once", "in blocks"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moments_of_whole_weights_are_those_of_single_example_gradients(tiny_model, examples, name, block, monkeypatch):
    monkeypatch.setattr(moments, "BLOCK_SIZE", block)  # with 2000, the larger layers take one example at a time
    model = tiny_model(name)
    layers = full_weights(model)
    mean, second, tokens = one_by_one(model, batches(examples, 1))
    transposed = isinstance(next(iter(layers.values())), Conv1D)
    expected = [{n: value.T if transposed else value for n, value in part.items()} for part in (mean, second)]
    measured = gradient_moments(model, batches(examples, 3), weights=list(layers))
    assert_moments(measured, (*expected, tokens))


def test_whole_weights_are_measured_under_adapters_too(tiny_model, examples):
    """The gradient is that of the base weight in the model with active adapters."""
    model = lora(tiny_model("llama"))
    name = "model.layers.1.mlp.down_proj"
    weight = model.get_base_model().get_submodule(name).base_layer.weight
    model.requires_grad_(False)
    weight.requires_grad_(True)
    mean, second, tokens = one_by_one(model, batches(examples, 1))
    expected = [{f"{name}.weight": value for value in part.values()} for part in (mean, second)]
    assert_moments(gradient_moments(model, batches(examples), weights=[name]), (*expected, tokens))


@pytest.mark.parametrize("chunk", [1, 2**18])
def test_moments_after_an_out_of_memory_error_are_those_of_smaller_batches(
    tiny_model, examples, chunk, monkeypatch, caplog
):
    """The error occurs in the backward pass, after other layers have added their moments of the batch."""
    monkeypatch.setattr(gradient_buffer, "_CPU_CHUNK", chunk)
    probe = attach_probe(tiny_model("llama"), LoraConfig(r=3, lora_alpha=6))
    expected = gradient_moments(probe, batches(examples, 1))
    limit = BatchLimit(rows=4)

    def fail(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def check(module, args, output):
        if len(args[0]) > 1:
            output.register_hook(fail)

    hook = probe.get_base_model().model.layers[0].mlp.down_proj.register_forward_hook(check)
    found = gradient_moments(probe, Batches(examples, limit, 0), limit=limit)
    hook.remove()
    assert_moments(found, (expected.mean, expected.second, expected.tokens))
    assert 2 <= len(caplog.messages) <= 3  # halvings from four rows to one: two, or three if the rows are short
    assert all("out of memory" in line for line in caplog.messages)


def test_a_single_example_that_is_too_large_for_the_memory_is_an_error(tiny_model, examples):
    limit = BatchLimit(rows=1)
    probe = attach_probe(tiny_model("llama"), LoraConfig(r=3, lora_alpha=6))

    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    probe.get_base_model().model.layers[0].register_forward_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        gradient_moments(probe, Batches(examples, limit, 0), limit=limit)


def test_products_in_bfloat16_give_nearly_the_same_moments(tiny_model, examples):
    expected = gradient_moments(attach_probe(tiny_model("llama"), LoraConfig(r=3, lora_alpha=6)), batches(examples))
    half = attach_probe(tiny_model("llama").bfloat16(), LoraConfig(r=3, lora_alpha=6))
    found = gradient_moments(half, batches(examples))
    for name, value in expected.second.items():
        assert found.second[name].dtype == torch.float32
        assert (found.second[name] - value).norm() <= 0.1 * value.norm(), name
