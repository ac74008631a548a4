import json
import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.models import ARCHITECTURES
from unlora import attach_adapters, export_adapter
from unlora.adapter.export import read_adapter, write_adapter
from unlora.adapter.offset import lora_layers
from unlora.adapter.targets import target_shapes
from unlora.common.errors import InputError
from unlora.models.hashes import ADAPTER_WEIGHTS

IDS = torch.tensor([[5, 9, 60, 7, 33, 12], [40, 41, 42, 43, 44, 45]])
# A program that loads each exported adapter on its saved base, and in which unlora cannot be imported.
LOADER = """
import sys
sys.modules["unlora"] = None
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
root, names = sys.argv[1], sys.argv[2:]
ids, logits = torch.tensor(IDS), {}
for name in names:
    base = AutoModelForCausalLM.from_pretrained(f"{root}/{name}/base").eval()
    with torch.no_grad():
        logits[name] = PeftModel.from_pretrained(base, f"{root}/{name}/adapter").eval()(input_ids=ids).logits
save_file(logits, f"{root}/logits.safetensors")
"""


def attached(base, **settings):
    """Return a model with both adapters. "unlearn" is changed at random, so that they no longer cancel."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, **settings})
    shapes = {name: tuple(base.get_submodule(name).weight.shape) for name in target_shapes(base, config.target_modules)}
    rows = {name: shape[1] if base.config.model_type == "gpt2" else shape[0] for name, shape in shapes.items()}
    torch.manual_seed(2)
    model = attach_adapters(base, config, {name: torch.rand(n) + 0.01 for name, n in rows.items()})
    move(model)
    return model.eval()


@torch.no_grad()
def move(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.02 * torch.randn_like(parameter))


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    """Return, by architecture, the logits of the base, of the trained model, and of its export loaded by `LOADER`."""
    root = tmp_path_factory.mktemp("exported")
    ours = {}
    for name in ARCHITECTURES:
        base = tiny_model(name)
        base.save_pretrained(root / name / "base")
        original = logits(base)
        model = attached(base)
        export_adapter(model, root / name / "adapter")
        ours[name] = original, logits(model)
    command = [sys.executable, "-c", LOADER.replace("IDS", str(IDS.tolist()), 1), str(root), *ARCHITECTURES]
    # PEFT must not contact the Hub.
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    theirs = load_file(root / "logits.safetensors")
    return {name: (*pair, theirs[name]) for name, pair in ours.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_where_unlora_is_not_installed_the_exported_adapter_is_the_trained_model(exported, name):
    original, trained, loaded = exported[name]
    assert (trained - original).abs().max() > 0.05
    assert (loaded - trained).abs().max() <= 1e-4


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(("r", "lora_alpha"), [(1, 5), (3, 16)])
def test_export_keeps_the_function_whatever_the_scaling(tiny_model, tmp_path, use_rslora, r, lora_alpha):
    model = attached(tiny_model("llama"), use_rslora=use_rslora, r=r, lora_alpha=lora_alpha)
    folder = export_adapter(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model("llama"), folder).eval()
    config = loaded.peft_config["default"]
    assert config.r == 2 * r
    layers, ours = lora_layers(loaded), lora_layers(model)
    assert {layer.scaling["default"] for _, layer in layers} == {layer.scaling["unlearn"] for _, layer in ours}
    assert (logits(loaded) - logits(model)).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_plain_start_is_exported_at_its_own_rank(tiny_model, tmp_path, name):
    model = attach_adapters(tiny_model(name), LoraConfig(r=4, lora_alpha=8)).eval()
    move(model)
    loaded = PeftModel.from_pretrained(tiny_model(name), export_adapter(model, tmp_path / "adapter")).eval()
    assert loaded.peft_config["default"].r == 4
    assert not loaded.peft_config["default"].rank_pattern
    assert (logits(loaded) - logits(model)).abs().max() <= 1e-4


def test_ranks_and_alphas_of_single_modules_are_exported(tiny_model, tmp_path):
    patterns = {"rank_pattern": {"up_proj": 1}, "alpha_pattern": {"k_proj": 5}}
    model = attached(tiny_model("llama"), **patterns)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), export_adapter(model, tmp_path / "adapter")).eval()
    for name, layer in lora_layers(loaded):
        assert layer.r["default"] == 2 * (1 if name.endswith("up_proj") else 4)
        assert layer.scaling["default"] == (5 / 4 if name.endswith("k_proj") else 8 if name.endswith("up_proj") else 2)
    assert (logits(loaded) - logits(model)).abs().max() <= 1e-4


def test_export_can_be_merged_into_the_base(tiny_model, tmp_path):
    model = attached(tiny_model("gpt2"))
    loaded = PeftModel.from_pretrained(tiny_model("gpt2"), export_adapter(model, tmp_path / "adapter"))
    assert (logits(loaded.merge_and_unload().eval()) - logits(model)).abs().max() <= 1e-4


def test_only_chosen_modules_are_exported(tiny_model, tmp_path):
    model = attached(tiny_model("llama"), target_modules=["q_proj", "down_proj"])
    folder = export_adapter(model, tmp_path / "adapter")
    weights = load_file(folder / ADAPTER_WEIGHTS)
    assert len(weights) == 2 * 2 * 2  # layers, modules, factors
    assert all("q_proj" in name or "down_proj" in name for name in weights)
    named = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert sorted(named) == ["down_proj", "q_proj"]


def test_the_folder_holds_safetensors_and_settings_and_nothing_else(tiny_model, tmp_path):
    folder = export_adapter(attached(tiny_model("llama")), tmp_path / "new" / "adapter")
    assert folder == tmp_path / "new" / "adapter"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", ADAPTER_WEIGHTS}
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_a_base_with_resized_embeddings_is_exported_without_them(tiny_model, tmp_path):
    """By default, PEFT looks up the original size of the vocabulary, and saves the embeddings too if it has changed."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(base.config.vocab_size + 8)
    weights = load_file(export_adapter(attached(base), tmp_path / "adapter") / ADAPTER_WEIGHTS)
    assert len(weights) == 2 * 2 * 7
    assert all("lora_" in name for name in weights)


def test_an_empty_folder_may_be_used(tiny_model, tmp_path):
    (tmp_path / "adapter").mkdir()
    export_adapter(attached(tiny_model("llama")), tmp_path / "adapter")
    assert (tmp_path / "adapter" / ADAPTER_WEIGHTS).is_file()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_used_path_is_refused_and_left_alone(tiny_model, tmp_path, kind):
    path = tmp_path / "adapter"
    mine = path / "mine" if kind == "folder" else path
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match=f"path='{path}': it is already in use"):
        export_adapter(attached(tiny_model("llama")), path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_a_model_without_an_adapter_of_ours_is_refused_and_nothing_is_written(tiny_model, tmp_path):
    base = tiny_model("llama")
    for model in (base, get_peft_model(base, LoraConfig(target_modules="all-linear"))):
        with pytest.raises(InputError, match=r"model=.*no adapter .unlearn."):
            export_adapter(model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_half_way_leaves_nothing(tiny_model, tmp_path):
    model = attached(tiny_model("llama"))
    # The settings are written last, and JSON cannot represent this value.
    model.peft_config["unlearn"].base_model_name_or_path = object()
    with pytest.raises(TypeError):
        export_adapter(model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_both_adapters_come_back_exactly_as_written(tiny_model, tmp_path, name):
    model = attached(tiny_model(name))
    write_adapter(model, tmp_path)
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.add_(1.0)
    read_adapter(model, tmp_path)
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_keeps_what_else_is_in_its_folder(tiny_model, tmp_path):
    (tmp_path / "optimizer.safetensors").write_text("mine")
    for _ in range(2):  # the second checkpoint replaces the first
        write_adapter(attached(tiny_model("llama")), tmp_path)
    names = {"adapter_config.json", ADAPTER_WEIGHTS, "optimizer.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("change", [{"r": 5}, {"target_modules": ["q_proj"]}])
def test_a_checkpoint_of_another_shape_is_refused(tiny_model, tmp_path, change):
    write_adapter(attached(tiny_model("llama"), **change), tmp_path)
    with pytest.raises(InputError, match=r"resume_from_checkpoint=.*another model or rank"):
        read_adapter(attached(tiny_model("llama")), tmp_path)


def test_a_missing_or_broken_checkpoint_is_refused(tiny_model, tmp_path):
    model = attached(tiny_model("llama"))
    with pytest.raises(InputError, match=f"resume_from_checkpoint=.*it has no {ADAPTER_WEIGHTS}"):
        read_adapter(model, tmp_path)
    write_adapter(model, tmp_path)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes((tmp_path / ADAPTER_WEIGHTS).read_bytes()[:-9])
    with pytest.raises(InputError, match=f"resume_from_checkpoint=.*{ADAPTER_WEIGHTS} is broken"):
        read_adapter(model, tmp_path)
