import pytest
import torch
from peft import LoraConfig

from helpers.models import ARCHITECTURES, warnings_as_errors
from unlora import UnlearnConfig, attach_adapters
from unlora.adapter import adapter_notes, reference_model
from unlora.adapter.factorise import weighted_low_rank
from unlora.adapter.offset import base_weight, freeze_others, lora_layers
from unlora.adapter.settings import OFFSET, UNLEARN
from unlora.adapter.targets import target_shapes
from unlora.common.errors import InputError
from unlora.data import TextFormat, encode_records, pad_batch
from unlora.importance import attach_probe
from unlora.models.forward import labelled_tokens
from unlora.models.memory import enable_checkpointing

CONFIG = LoraConfig(r=4, lora_alpha=8)


@pytest.fixture(scope="module")
def batch(tokenizer):
    rows = [
        {"question": "Where was Ada Lovelace born?", "answer": "London."},
        {"question": "Why?", "answer": "Nobody minds at all."},
    ]
    return pad_batch(encode_records(rows, TextFormat(tokenizer)), 0)


def some_importance(base):
    """Return row importances that span three orders of magnitude, for every linear layer except the head."""
    generator = torch.Generator().manual_seed(3)
    out = {name: getattr(base.get_submodule(name), "nf", 0) or shape[0] for name, shape in all_targets(base).items()}
    return {name: 10 ** (3 * torch.rand(rows, generator=generator) - 2) for name, rows in out.items()}


def all_targets(base):
    return target_shapes(base, None)


def attached(base, config=CONFIG):
    return attach_adapters(base, config, some_importance(base))


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def train(model, batch, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        labelled_tokens(model, batch).logp.mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_step_0_is_the_base_though_the_adapter_is_not_zero(tiny_model, batch, name):
    expected = logits(tiny_model(name), batch)
    model = attached(tiny_model(name))
    assert (logits(model, batch) - expected).abs().max() <= 1e-4
    model.base_model.set_adapter(UNLEARN)  # without the offset, the adapter has an effect
    assert (logits(model, batch) - expected).abs().max() > 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_after_training_the_model_differs_and_with_adapters_off_it_is_the_original_exactly(tiny_model, batch, name):
    expected = logits(tiny_model(name), batch)
    model = attached(tiny_model(name))
    train(model, batch)
    assert (logits(model, batch) - expected).abs().max() > 0.1
    with reference_model(model):
        assert torch.equal(logits(model, batch), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_moves_every_unlearn_factor_and_nothing_else(tiny_model, batch, name):
    model = attached(tiny_model(name))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, batch)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if f".{UNLEARN}." in key}
    original = tiny_model(name).state_dict()
    for key, value in model.get_base_model().state_dict().items():
        plain = key.replace(".base_layer.", ".")
        assert "lora_" in key or torch.equal(value, original[plain])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_linear_layer_but_the_head_starts_at_its_weighted_factors(tiny_model, name):
    base = tiny_model(name)
    weights = {key: value.clone() for key, value in base.state_dict().items()}
    importance = some_importance(base)
    model = attach_adapters(base, CONFIG, importance)
    layers = dict(lora_layers(model))
    assert layers.keys() == importance.keys()
    assert not any("lm_head" in layer for layer in layers)
    for layer_name, layer in layers.items():
        weight = weights[f"{layer_name}.weight"]
        weight = weight.T if name == "gpt2" else weight  # Conv1D stores [in, out]
        assert torch.equal(base_weight(layer), weight)
        a0, b0 = weighted_low_rank(weight, importance[layer_name], 4, scaling=8 / 4)
        assert torch.equal(layer.lora_A[UNLEARN].weight, a0)
        assert torch.equal(layer.lora_B[UNLEARN].weight, b0)


def assert_only_unlearn_trains(model):
    names = trainable(model)
    assert names == {name for name, _ in model.named_parameters() if f".{UNLEARN}." in name}
    assert len(names) == 2 * len(lora_layers(model))


def test_only_unlearn_trains_whatever_switched_adapters_before(tiny_model):
    model = attached(tiny_model("llama"))
    assert_only_unlearn_trains(model)
    with reference_model(model):
        pass
    assert_only_unlearn_trains(model)
    with pytest.raises(KeyError), reference_model(model):
        raise KeyError
    assert_only_unlearn_trains(model)
    with model.disable_adapter():
        pass
    freeze_others(model)
    assert_only_unlearn_trains(model)
    model.base_model.set_adapter([UNLEARN, OFFSET])
    freeze_others(model)
    assert_only_unlearn_trains(model)


@pytest.mark.parametrize("training", [True, False, "mixed"])
def test_the_reference_has_no_gradient_and_no_dropout_and_the_mode_comes_back(tiny_model, batch, training):
    model = attached(tiny_model("gpt2"))  # it has dropout 0.1 by default
    if training == "mixed":  # after attaching, PEFT's modules are in training mode, the base is not
        assert {module.training for module in model.modules()} == {True, False}
    else:
        model.train(training)
    modes = [module.training for module in model.modules()]
    expected = logits(tiny_model("gpt2"), batch)
    with reference_model(model):
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert not out.requires_grad
        assert torch.equal(out, expected)
    assert [module.training for module in model.modules()] == modes
    assert model.active_adapters == [UNLEARN, OFFSET]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_halves_cancel_exactly_as_stored(tiny_model, batch, dtype):
    expected = logits(tiny_model("llama").to(dtype), batch)
    model = attached(tiny_model("llama").to(dtype))
    for _, layer in lora_layers(model):
        assert torch.equal(layer.lora_A[OFFSET].weight, layer.lora_A[UNLEARN].weight)
        assert torch.equal(layer.lora_B[OFFSET].weight, -layer.lora_B[UNLEARN].weight)
        assert layer.lora_A[OFFSET].weight.dtype == layer.lora_A[UNLEARN].weight.dtype
    # Only rounding errors remain: a few units in the last place of the logits.
    step = torch.finfo(dtype).eps * expected.abs().max()
    assert (logits(model, batch) - expected).abs().max() <= 8 * step


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_is_told_how_the_weights_are_stored_and_has_nothing_to_warn_of(tiny_model, name):
    with warnings_as_errors():
        model = attached(tiny_model(name))
    assert {config.fan_in_fan_out for config in model.peft_config.values()} == {name == "gpt2"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_with_gradient_checkpointing_every_unlearn_factor_gets_a_gradient(tiny_model, batch, reentrant):
    model = attached(tiny_model("llama"))
    model.enable_input_require_grads()
    enable_checkpointing(model, {"use_reentrant": reentrant})
    labelled_tokens(model.train(), batch).logp.mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == trainable(model)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_unlearn_config_and_lora_config_give_the_same_adapters(tiny_model, tmp_path):
    settings = {"r": 3, "lora_alpha": 12, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]}
    ours = attached(tiny_model("llama"), UnlearnConfig(output_dir=str(tmp_path), use_cpu=True, **settings))
    theirs = attached(tiny_model("llama"), LoraConfig(**settings))
    for (name, one), (other_name, other) in zip(lora_layers(ours), lora_layers(theirs), strict=True):
        assert name == other_name
        assert name.endswith(("q_proj", "down_proj"))
        assert one.scaling == other.scaling == {UNLEARN: 12 / 3**0.5, OFFSET: 12 / 3**0.5}
    states = [model.state_dict() for model in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_targets_may_be_a_pattern(tiny_model):
    base = tiny_model("llama")
    model = attached(base, LoraConfig(r=2, target_modules=r".*layers\.1\..*_proj"))
    assert {name.split(".")[2] for name, _ in lora_layers(model)} == {"1"}
    assert len(lora_layers(model)) == 7


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_importance_the_start_is_plain_lora_and_the_model_the_base_exactly(tiny_model, batch, name):
    model = attach_adapters(tiny_model(name), CONFIG)
    assert torch.equal(logits(model, batch), logits(tiny_model(name), batch))
    assert model.active_adapters == [UNLEARN]
    assert_only_unlearn_trains(model)
    for _, layer in lora_layers(model):
        a, b = layer.lora_A[UNLEARN].weight, layer.lora_B[UNLEARN].weight
        bound = a.shape[1] ** -0.5  # Kaiming-uniform with a = sqrt(5) has the bounds ±1 / sqrt(in)
        assert 0.8 * bound < a.abs().max() <= bound
        assert not b.any()


def test_a_plain_start_depends_on_torch_s_seed(tiny_model):
    states = []
    for seed in (1, 1, 2):
        base = tiny_model("llama")
        torch.manual_seed(seed)
        states.append(attach_adapters(base, CONFIG).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not any(torch.equal(value, states[2][key]) for key, value in states[0].items() if ".lora_A." in key)


def test_ranks_and_alphas_of_single_modules_are_those_of_peft(tiny_model, batch):
    config = LoraConfig(
        r=4, lora_alpha=8, rank_pattern={"up_proj": 2, "^model.layers.0.*": 1}, alpha_pattern={"k_proj": 6}
    )
    base = tiny_model("llama")
    model = attached(base, config)
    assert (logits(model, batch) - logits(tiny_model("llama"), batch)).abs().max() <= 1e-4
    for name, layer in lora_layers(model):
        rank = 2 if name.endswith("up_proj") else 1 if ".0." in name else 4
        assert layer.lora_A[UNLEARN].weight.shape[0] == layer.lora_A[OFFSET].weight.shape[0] == rank
        assert layer.scaling[UNLEARN] == layer.scaling[OFFSET] == (6 if name.endswith("k_proj") else 8) / rank
    train(model, batch)
    with reference_model(model):
        assert torch.equal(logits(model, batch), logits(tiny_model("llama"), batch))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 4, "lora_dropout": 0.1}, "lora_dropout=0.1.*use 0"),
        ({"r": 4, "lora_alpha": 0}, "lora_alpha=0"),
        ({"r": 4, "target_modules": ["q_proj", "lm_head"]}, "target_modules=.*output head"),
        ({"r": 4, "target_modules": ["nothing"]}, "target_modules=.*no such linear layer"),
        ({"r": 4, "target_modules": "nothing.*"}, "target_modules='nothing.*no such linear layer"),
        ({"r": 4, "target_modules": ["q_proj", "v_porj"]}, "target_modules='v_porj'.*no linear layer of this name"),
        ({"r": 4, "target_modules": ["q_proj", "embed_tokens"]}, "target_modules='embed_tokens'.*no linear layer"),
        ({"r": 4, "use_dora": True}, "use_dora=True.*plain LoRA"),
        ({"r": 4, "init_lora_weights": "pissa"}, "init_lora_weights='pissa'.*plain LoRA"),
        ({"r": 4, "rank_pattern": {"k_proj": 17}}, r"rank_pattern\['k_proj'\]=17: .* 1 to 16"),
        ({"r": 4, "rank_pattern": {"k_porj": 2}}, "rank_pattern='k_porj': it matches no adapted layer"),
        ({"r": 4, "alpha_pattern": {"q_proj": 0}}, r"alpha_pattern\['q_proj'\]=0"),
        ({"r": 4, "modules_to_save": ["lm_head"]}, "modules_to_save=.*plain LoRA"),
    ],
)
@pytest.mark.parametrize("attach", [attached, attach_probe])
def test_settings_that_cannot_work_are_refused_before_the_base_is_touched(tiny_model, attach, settings, message):
    base = tiny_model("llama")
    with pytest.raises(InputError, match=message):
        attach(base, LoraConfig(**settings))
    assert not any("lora_" in name for name, _ in base.named_parameters())


@pytest.mark.parametrize(("rslora", "alpha"), [(False, 40), (True, 20)])
def test_a_layer_too_small_for_the_rank_gets_its_largest_and_the_same_scaling(tiny_model, batch, rslora, alpha):
    """The key projection has 16 outputs, so it gets rank 16. The query projection has 32 and gets rank 20.

    The scaling in plain LoRA is 40 / 20 = 2 for both.
    """
    config = LoraConfig(r=20, lora_alpha=alpha, use_rslora=rslora, target_modules=["q_proj", "k_proj"])
    base = tiny_model("llama")
    before = logits(base, batch)
    assert adapter_notes(base, config) == [
        "layers that are too small for rank 20 get their largest rank: self_attn.k_proj (16)"
    ]
    model = attach_adapters(base, config, {name: torch.ones(shape[0]) for name, shape in all_targets(base).items()})
    layers = dict(lora_layers(model))
    assert {layer.r[UNLEARN] for name, layer in layers.items() if name.endswith("k_proj")} == {16}
    assert {layer.r[OFFSET] for name, layer in layers.items() if name.endswith("q_proj")} == {20}
    scalings = [layer.scaling[UNLEARN] for layer in layers.values()]
    assert scalings == pytest.approx([alpha / (20**0.5 if rslora else 20)] * len(layers))
    torch.testing.assert_close(logits(model, batch), before, atol=1e-4, rtol=0)


def test_a_rank_beyond_every_layer_gives_each_its_largest(tiny_model):
    base, config = tiny_model("llama"), LoraConfig(r=64, lora_alpha=128, target_modules="all-linear")
    (note,) = adapter_notes(base, config)
    assert note.startswith("layers that are too small for rank 64 get their largest rank: mlp.down_proj (32), ")
    layers = dict(lora_layers(attach_adapters(base, config)))
    small = ("k_proj", "v_proj")  # 2 heads with 8 outputs each
    assert all(layer.r[UNLEARN] == (16 if name.endswith(small) else 32) for name, layer in layers.items())
    assert {layer.scaling[UNLEARN] for layer in layers.values()} == {2}


def test_all_linear_is_what_is_adapted_by_default(tiny_model, tmp_path):
    base = tiny_model("llama")
    own = UnlearnConfig(output_dir=str(tmp_path), target_modules=["all-linear"], use_cpu=True)
    assert own.target_modules is None
    for everything in ("all-linear", ["all-linear"]):
        assert target_shapes(base, everything) == all_targets(base)
    assert adapter_notes(base, own) == []


def test_rank_0_is_refused(tiny_model):
    with pytest.raises(InputError, match="r=0"):
        attached(tiny_model("llama"), LoraConfig(r=0))


def test_all_problems_of_the_settings_are_told_at_once(tiny_model):
    with pytest.raises(InputError) as caught:
        attached(tiny_model("llama"), LoraConfig(r=0, lora_dropout=0.5, target_modules=["q_proj", "lm_head"]))
    assert {problem.argument for problem in caught.value.problems} == {"r", "lora_dropout", "target_modules"}


def test_a_module_without_importance_is_refused_by_name(tiny_model):
    base = tiny_model("llama")
    importance = some_importance(base)
    missing = "model.layers.1.mlp.up_proj"
    del importance[missing]
    with pytest.raises(InputError, match=f"importance=.*{missing}"):
        attach_adapters(base, CONFIG, importance)


def test_an_importance_of_zero_everywhere_is_refused(tiny_model):
    """Both factors would start at zero, where neither has a gradient, so the adapter could never learn."""
    base = tiny_model("llama")
    zero = {name: torch.zeros_like(value) for name, value in some_importance(base).items()}
    with pytest.raises(InputError, match=r"importance=.*zero everywhere"):
        attach_adapters(base, CONFIG, zero)
