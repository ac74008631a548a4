"""Requests on a model that already has adapters: which of them stay active, which train, and what is exported."""

import json

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

from helpers.models import ARCHITECTURES, warnings_as_errors
from unlora import attach_adapters, export_adapter, weighted_low_rank
from unlora.adapter import compression, detach_adapters, reference_model
from unlora.adapter.export import read_adapter, write_adapter
from unlora.adapter.offset import base_weight, lora_layers
from unlora.adapter.settings import UNLEARN
from unlora.adapter.targets import target_shapes
from unlora.common.errors import InputError
from unlora.importance import attach_probe
from unlora.models.hashes import ADAPTER_WEIGHTS

IDS = torch.tensor([[5, 9, 60, 7, 33, 12], [40, 41, 42, 43, 44, 45]])
CONFIG = LoraConfig(r=4, lora_alpha=8)
SOME = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"], "gptneox": ["dense"]}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@torch.no_grad()
def move(model, name=UNLEARN):
    for key, parameter in model.named_parameters():
        if f".{name}." in key:
            parameter.add_(0.03 * torch.randn_like(parameter))


def importance(base):
    generator = torch.Generator().manual_seed(3)
    return {n: torch.rand(rows, generator=generator) + 0.01 for n, (rows, _) in target_shapes(base, None).items()}


@torch.no_grad()
def tuned(base, folder, **settings):
    """Save a plain PEFT fine-tune of `base` to `folder`."""
    torch.manual_seed(5)
    settings = {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    transposed = base.config.model_type == "gpt2"
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=transposed, **settings))
    for _, layer in lora_layers(model):
        layer.lora_B["default"].weight.mul_(0.3)
    model.save_pretrained(folder, save_embedding_layers=False)


def load(base, *folders):
    """Return `base` with the adapters of all folders active."""
    model = PeftModel.from_pretrained(base, folders[0], "first")
    for number, folder in enumerate(folders[1:]):
        model.load_adapter(folder, f"next{number}")
    model.base_model.set_adapter(list(model.peft_config), inference_mode=True)
    return model.eval()


PRIORS = {
    "everywhere": [{}],
    "some modules, other rank, rsLoRA": [{"r": 5, "use_rslora": True, "target_modules": "some"}],
    "two": [{"lora_alpha": 3}, {"r": 1, "target_modules": "some", "lora_dropout": 0.5}],
}


def carrying(tiny_model, name, folder, prior):
    for number, settings in enumerate(PRIORS[prior]):
        some = {"target_modules": SOME.get(name)} if settings.get("target_modules") == "some" else {}
        tuned(tiny_model(name), folder / str(number), **{**settings, **some})
    return load(tiny_model(name), *(folder / str(number) for number in range(len(PRIORS[prior]))))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gptneox"])
@pytest.mark.parametrize("targets", [None, "some"])
@pytest.mark.parametrize("start", ["offset", "plain"])
def test_the_export_holds_earlier_adapters_too_and_loads_on_the_original_base(
    tiny_model, tmp_path, name, prior, targets, start
):
    base = carrying(tiny_model, name, tmp_path, prior)
    before = logits(base)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=SOME[name] if targets else None)
    model = attach_adapters(base, config, importance(base) if start == "offset" else None).eval()
    assert (logits(model) - before).abs().max() <= 1e-4
    move(model)
    folder = export_adapter(model, tmp_path / "adapter")
    with warnings_as_errors():
        loaded = PeftModel.from_pretrained(tiny_model(name), folder).eval()
    assert (logits(model) - before).abs().max() > 0.05
    assert (logits(loaded) - logits(model)).abs().max() <= 1e-4


def test_modules_of_other_ranks_are_named_exactly(tiny_model, tmp_path):
    """A request of rank 4 is exported at rank 2 · 4 = 8, or 8 + 3 = 11 with an earlier adapter of rank 3."""
    tuned(tiny_model("llama"), tmp_path / "first", target_modules=["model.layers.1.mlp.up_proj"])
    base = load(tiny_model("llama"), tmp_path / "first")
    folder = export_adapter(attach_adapters(base, CONFIG, importance(base)), tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model("llama"), folder)
    ranks = {name: layer.r["default"] for name, layer in lora_layers(loaded)}
    assert {name for name, rank in ranks.items() if rank == 11} == {"model.layers.1.mlp.up_proj"}
    assert sorted(ranks.values()) == [8] * 13 + [11]
    assert {layer.scaling["default"] for _, layer in lora_layers(loaded)} == {2.0}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == 11  # the largest rank, for programs that ignore rank_pattern
    assert config["lora_alpha"] == 22


def test_modules_of_either_adapter_are_exported(tiny_model, tmp_path):
    tuned(tiny_model("llama"), tmp_path / "first", target_modules=["model.layers.0.self_attn.q_proj", "down_proj"])
    base = load(tiny_model("llama"), tmp_path / "first")
    model = attach_adapters(base, LoraConfig(r=2, target_modules=["down_proj", "up_proj"]), importance(base))
    names = {name.split(".", 2)[2] for name in load_file(export_adapter(model, tmp_path / "adapter") / ADAPTER_WEIGHTS)}
    adapted = {name.rsplit(".lora_", 1)[0] for name in names}
    both = {f"model.layers.{i}.mlp.{n}_proj" for i in (0, 1) for n in ("down", "up")}
    assert adapted == {*both, "model.layers.0.self_attn.q_proj"}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trained} == both


def test_an_adapter_that_is_not_active_stays_out(tiny_model, tmp_path):
    for name in ("first", "second"):
        tuned(tiny_model("llama"), tmp_path / name, r=3 if name == "first" else 2)
    base = load(tiny_model("llama"), tmp_path / "first", tmp_path / "second")
    base.set_adapter("next0")
    before = logits(base)
    model = attach_adapters(base, CONFIG, importance(base)).eval()
    assert (logits(model) - before).abs().max() <= 1e-4
    loaded = PeftModel.from_pretrained(tiny_model("llama"), export_adapter(model, tmp_path / "adapter")).eval()
    assert loaded.peft_config["default"].r == 2 * 4 + 2
    assert (logits(loaded) - before).abs().max() <= 1e-4


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_reference_is_the_model_before_this_request(tiny_model, tmp_path, name, prior):
    base = carrying(tiny_model, name, tmp_path, prior)
    before = logits(base)
    assert (before - logits(tiny_model(name))).abs().max() > 0.05
    model = attach_adapters(base, CONFIG, importance(base))
    move(model)
    model.train()
    active, gradients = list(model.active_adapters), {n: p.requires_grad for n, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    with reference_model(model):
        assert torch.equal(logits(model), before)
    assert list(model.active_adapters) == active
    assert {n: p.requires_grad for n, p in model.named_parameters()} == gradients
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("prior", PRIORS)
def test_only_unlearn_trains_and_earlier_dropout_is_off(tiny_model, tmp_path, prior):
    base = carrying(tiny_model, "llama", tmp_path, prior)
    model = attach_adapters(base, CONFIG, importance(base)).train()  # llama has no dropout of its own
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if f".{UNLEARN}." in n
    }
    assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
    model(input_ids=IDS).logits.square().mean().backward()
    assert all((p.grad is not None) == (f".{UNLEARN}." in n) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_start_is_a_part_of_the_weight_that_acts(tiny_model, tmp_path, name):
    base = carrying(tiny_model, name, tmp_path, "two")
    merged = carrying(tiny_model, name, tmp_path, "two").merge_and_unload()
    model = attach_adapters(base, CONFIG, importance(base))
    assert {layer_name for layer_name, _ in lora_layers(model)} == importance(merged).keys()
    for layer_name, layer in lora_layers(model):
        weight = merged.get_submodule(layer_name).weight
        weight = weight.T if name == "gpt2" else weight
        torch.testing.assert_close(base_weight(layer), weight, rtol=1e-5, atol=1e-6)
        a0, b0 = weighted_low_rank(base_weight(layer), importance(merged)[layer_name], 4, 2.0)
        assert torch.equal(layer.lora_A[UNLEARN].weight, a0)
        assert torch.equal(layer.lora_B[UNLEARN].weight, b0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("max_rank", [None, 6])
def test_two_requests_in_sequence_and_the_last_export_is_all_that_is_needed(tiny_model, tmp_path, name, max_rank):
    torch.manual_seed(1)
    first = attach_adapters(tiny_model(name), CONFIG, importance(tiny_model(name))).eval()
    move(first)
    export_adapter(first, tmp_path / "1", max_rank)
    base = load(tiny_model(name), tmp_path / "1")
    after_first = logits(base)
    if max_rank is None:
        assert (after_first - logits(first)).abs().max() <= 1e-4
    second = attach_adapters(base, LoraConfig(r=2, lora_alpha=8), importance(tiny_model(name))).eval()
    assert (logits(second) - after_first).abs().max() <= 1e-4
    move(second)
    third = load(tiny_model(name), export_adapter(second, tmp_path / "2"))
    assert (logits(third) - logits(second)).abs().max() <= 1e-4
    assert third.peft_config["first"].r == 2 * 2 + (max_rank or 2 * 4)


def test_in_half_precision_too_step_0_is_the_model_before(tiny_model, tmp_path):
    tuned(tiny_model("llama"), tmp_path / "first")
    base = load(tiny_model("llama").bfloat16(), tmp_path / "first")
    before = logits(base)
    model = attach_adapters(base, CONFIG, importance(base)).eval()
    step = torch.finfo(torch.bfloat16).eps * before.abs().max()
    assert (logits(model) - before).abs().max() <= 8 * step
    move(model)
    loaded = PeftModel.from_pretrained(tiny_model("llama").bfloat16(), export_adapter(model, tmp_path / "both")).eval()
    assert (logits(loaded) - logits(model)).abs().max() <= 8 * step


def test_target_shapes_are_those_of_the_original_base(tiny_model, tmp_path):
    for name in ARCHITECTURES:
        tuned(tiny_model(name), tmp_path / name, target_modules=SOME.get(name, "all-linear"))
        base = load(tiny_model(name), tmp_path / name)
        for targets in (None, SOME.get("llama"), ".*[01].*proj"):
            assert target_shapes(base, targets) == target_shapes(tiny_model(name), targets)


def test_the_probe_measures_the_model_with_its_earlier_adapters_and_leaves_it_as_it_was(tiny_model, tmp_path):
    base = carrying(tiny_model, "llama", tmp_path, "some modules, other rank, rsLoRA")
    before, names = logits(base), [name for name, _ in base.named_modules()]
    probe = attach_probe(base, CONFIG, seed=1).eval()
    assert (logits(probe) - before).abs().max() <= 1e-4
    assert detach_adapters(probe) is base
    assert torch.equal(logits(base), before)
    assert [name for name, _ in base.named_modules()] == names
    assert not any(p.requires_grad for p in base.parameters())
    assert (logits(attach_adapters(base, CONFIG, importance(base)).eval()) - before).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_detaching_gives_a_plain_base_back(tiny_model, name):
    base, expected = tiny_model(name), tiny_model(name)
    back = detach_adapters(attach_probe(base, CONFIG))
    assert back is base
    assert [n for n, _ in back.named_modules()] == [n for n, _ in expected.named_modules()]
    assert torch.equal(logits(back), logits(expected))


@pytest.mark.parametrize("start", ["offset", "plain"])
@pytest.mark.parametrize("prior", PRIORS)
def test_a_checkpoint_restores_this_request_s_adapters_exactly(tiny_model, tmp_path, prior, start):
    base = carrying(tiny_model, "llama", tmp_path, prior)
    config = LoraConfig(r=4, lora_alpha=8, rank_pattern={"up_proj": 3}, alpha_pattern={"k_proj": 5})
    model = attach_adapters(base, config, importance(base) if start == "offset" else None)
    move(model)
    write_adapter(model, tmp_path / "checkpoint")
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    move(model)
    read_adapter(model, tmp_path / "checkpoint")
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "checkpoint").eval()
    assert (logits(loaded) - logits(model.eval())).abs().max() <= 1e-4


def test_a_checkpoint_on_top_of_another_adapter_is_refused(tiny_model, tmp_path):
    write_adapter(attach_adapters(carrying(tiny_model, "llama", tmp_path / "a", "everywhere"), CONFIG), tmp_path / "c")
    other = carrying(tiny_model, "llama", tmp_path / "b", "everywhere")
    move(other, "first")
    with pytest.raises(InputError, match=r"resume_from_checkpoint=.*other earlier adapters"):
        read_adapter(attach_adapters(other, CONFIG), tmp_path / "c")


def change(model):
    """Return ΔW of every adapted module."""
    return {
        name: sum(
            layer.scaling[key] * layer.lora_B[key].weight.double() @ layer.lora_A[key].weight.double()
            for key in model.active_adapters
            if key in layer.lora_A
        ).detach()
        for name, layer in lora_layers(model)
    }


@pytest.mark.parametrize("max_rank", [1, 6, 100])
def test_the_cost_of_compression_is_the_distance_between_the_two_adapters(tiny_model, tmp_path, max_rank):
    base = carrying(tiny_model, "llama", tmp_path, "two")
    config = LoraConfig(r=4, lora_alpha=8, alpha_pattern={"up_proj": 80})  # scaled by 20 instead of 2
    model = attach_adapters(base, config, importance(base)).eval()
    move(model)
    cost = compression(model, max_rank)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), export_adapter(model, tmp_path / "small", max_rank)).eval()
    exact, small = change(model), change(loaded)
    lost = {name: (exact[name] - small[name]).norm() for name in exact}
    whole = sum(value.square().sum() for value in exact.values()).sqrt()
    assert cost.relative_error == pytest.approx(float(torch.stack([*lost.values()]).norm() / whole), rel=1e-4, abs=1e-6)
    largest = max(float(lost[name] / exact[name].norm()) for name in exact)
    assert cost.largest_relative_error == pytest.approx(largest, rel=1e-4, abs=1e-6)
    assert cost.rank == min(max_rank, 2 * 4 + 3 + 1) == max(layer.r["default"] for _, layer in lora_layers(loaded))
    if max_rank == 100:
        assert (logits(loaded) - logits(model)).abs().max() <= 1e-4
    else:
        assert cost.relative_error > 0.01


@pytest.mark.parametrize("call", [lambda m, p: compression(m, 0), lambda m, p: export_adapter(m, p, 0)])
def test_rank_0_is_refused(tiny_model, tmp_path, call):
    with pytest.raises(InputError, match="max_rank=0"):
        call(attach_adapters(tiny_model("llama"), CONFIG), tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def wrapped(base, name="default", **settings):
    return get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2, **settings), adapter_name=name)


def merged(base):
    model = wrapped(base)
    model.merge_adapter()
    return model


def switched_off(base):
    model = wrapped(base)
    model.base_model.disable_adapter_layers()
    return model


def on_embeddings(base):
    return get_peft_model(base, LoraConfig(target_modules=["embed_tokens"], r=2))


def on_adalora(base):
    return get_peft_model(base, AdaLoraConfig(target_modules=["q_proj"], total_step=9, tinit=1, tfinal=1))


def on_prompt(base):
    return get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


REFUSED = {
    "a name of ours": (lambda base: wrapped(base, "offset"), "already has an adapter 'offset'"),
    "DoRA": (lambda base: wrapped(base, use_dora=True), r"'default' is not plain LoRA \(use_dora\)"),
    "modules to save": (lambda base: wrapped(base, modules_to_save=["lm_head"]), "modules_to_save.*merge"),
    "bias": (lambda base: wrapped(base, bias="lora_only"), "bias"),
    "a start that moves the base": (lambda base: wrapped(base, init_lora_weights="pissa"), "init_lora_weights='pissa'"),
    "merged": (merged, "merged into the weights or switched off"),
    "switched off": (switched_off, "merged into the weights or switched off"),
    "embeddings": (on_embeddings, "layers that are not linear"),
    "IA3": (lambda base: get_peft_model(base, IA3Config(task_type="CAUSAL_LM")), "not plain LoRA .IA3"),
    "AdaLoRA": (on_adalora, "not plain LoRA .peft_type"),
    "a prompt": (on_prompt, "not plain LoRA .PROMPT_TUNING"),
    "no PeftModel": (lambda base: wrapped(base).get_base_model(), "without a PeftModel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_earlier_adapters_that_could_not_be_exported_are_refused(tiny_model, case):
    make, message = REFUSED[case]
    base = make(tiny_model("llama"))
    names = [name for name, _ in base.named_modules()]
    for attach in (attach_adapters, attach_probe):
        with pytest.raises(InputError, match=f"model=.*{message}"):
            attach(base, CONFIG)
    assert [name for name, _ in base.named_modules()] == names
