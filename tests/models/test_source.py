"""A model loads correctly or not at all. The error for each fault in its files names the cause and the fix."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, Gemma3Config, LlavaConfig

from helpers.models import make_tokenizer
from helpers.runs import flags
from unlora.adapter import attach_adapters
from unlora.adapter.offset import lora_layers
from unlora.cli import main
from unlora.common.errors import InputError
from unlora.data import load_records, pad_batch
from unlora.models.adapter_files import adapter_folder
from unlora.models.forward import decoder_layers, labelled_tokens
from unlora.models.load import load_model
from unlora.settings import ModelConfig

UP = "model.layers.1.mlp.up_proj.weight"


def weights(change):
    """Return a function that changes the weights in a model folder."""

    def made(folder):
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return made


def settings(**values):
    """Return a function that changes settings in the config.json of a model folder."""

    def made(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return made


def content(name, data):
    """Return a function that replaces a file in a model folder, or deletes it if `data` is None."""

    def made(folder):
        (folder / name).unlink(missing_ok=True)
        if data is not None:
            (folder / name).write_bytes(data)

    return made


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20_000])


def shard_lost(folder):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    next(folder.glob("model-00002-of-*")).unlink()


def pickled(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def with_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 6353536\n"
WRONG = {
    "a wrapper": (
        weights(lambda found: {f"module.{name}": value for name, value in found.items()}),
        r"the weights lack .* and \d+ more, which would be random.*without its wrapper, whose name 'module\.'",
    ),
    "a missing weight": (
        weights(lambda found: {name: value for name, value in found.items() if name != UP}),
        f"the weights lack {UP}, which would be random",
    ),
    "one too many": (weights(lambda found: {**found, "v_head.weight": torch.ones(3)}), "contain v_head.weight"),
    "another shape": (
        weights(lambda found: {**found, UP: torch.ones(3, 4)}),
        rf"{UP} has the shape \[3, 4\] in the weights, and \[48, 32\] in config.json",
    ),
    "more layers": (settings(num_hidden_layers=3), r"the weights lack model\.layers\.2\."),
    "fewer layers": (settings(num_hidden_layers=1), r"the weights contain model\.layers\.1\."),
    "a pointer": (content("model.safetensors", POINTER), "model.safetensors is a git-lfs pointer.*git lfs pull"),
    "settings of a tokenizer cut off": (
        content("tokenizer_config.json", b'{"pad_tok'),
        "tokenizer_config.json is cut off",
    ),
    "settings of generation cut off": (
        content("generation_config.json", b'{"eos'),
        "generation_config.json is cut off",
    ),
    "a list of settings": (content("generation_config.json", b"[]"), "generation_config.json is cut off"),
    "an end that is no token": (
        content("generation_config.json", b'{"eos_token_id": "</s>"}'),
        "eos_token_id in its generation_config.json is '</s>', not the id of a token",
    ),
    "a pointer for a tokenizer": (content("tokenizer.json", POINTER), "tokenizer.json is a git-lfs pointer"),
    "a copy that was cut off": (cut, "model.safetensors is cut off or broken"),
    "an empty file": (content("model.safetensors", b""), "model.safetensors is cut off or broken"),
    "a lost part": (shard_lost, "model-00002-of-.* is missing.*copy or download it again"),
    "no weights": (content("model.safetensors", None), "the folder has no model.safetensors"),
    "pickled weights": (pickled, "pickled .pytorch_model.bin.*safetensors only.*model.save_pretrained"),
    "no configuration": (content("config.json", None), "the folder has no config.json"),
    "a broken configuration": (content("config.json", b'{"a":'), "transformers cannot load it"),
    "a setting of another type": (settings(attention_dropout="x"), "cannot load it.*'attention_dropout'.*got str"),
    **(
        {"no names of classes": (settings(architectures=0), "cannot load it.*'architectures'.*got int")}
        if Version(transformers.__version__) < Version("5.24")  # which loads such a model
        else {}
    ),
    "a size that is no number": (settings(vocab_size="x"), "cannot load it.*'vocab_size'"),
    "another kind": (settings(model_type="nonsense"), "transformers cannot load it"),
    "code of its own": (
        settings(model_type="own", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}),
        "trust_remote_code=False: the model comes with its own code",
    ),
    "a format that is not installed": (
        settings(quantization_config={"quant_method": "hqq"}),
        "it needs a package that is not installed .*HQQ",
    ),
    "a format that nobody knows": (settings(quantization_config={"quant_method": "foo"}), "quantised as 'foo'"),
    "a model and an adapter": (with_adapter, "both a whole model and an adapter"),
    "a broken tokenizer": (content("tokenizer.json", b"{}"), "no tokenizer.*--tokenizer_name_or_path"),
}


@pytest.fixture
def copied(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.mark.parametrize("case", WRONG)
def test_a_model_that_cannot_be_loaded_whole_is_refused(copied, case, caplog):
    change, message = WRONG[case]
    change(copied)
    with pytest.raises(InputError, match=message):
        load_model(ModelConfig(str(copied)))
    assert "LOAD REPORT" not in caplog.text  # there, transformers says that some faults may be ignored
    assert "seem corrupted" not in caplog.text


@pytest.mark.parametrize("path", ["no/such/folder", "./missing", "/missing/model"])
def test_a_missing_folder_is_refused(path):
    with pytest.raises(InputError, match=f"model_name_or_path='{path}': there is no such folder"):
        load_model(ModelConfig(path))


def test_a_path_whose_last_folder_is_missing_is_not_asked_for_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "models" / "bot").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"'models/bott': there is no such folder.*did you mean models/bot\?"):
        load_model(ModelConfig("models/bott"))
    with pytest.raises(InputError, match=r"adapter='models/bott': it has no adapter_model"):
        adapter_folder("models/bott", "adapter")
    with pytest.raises(InputError, match=r"data='models/bott': no such file or folder"):
        load_records("models/bott")


@pytest.mark.parametrize("kernel", ["flash_attention_2", "foo"])
def test_an_attention_kernel_that_is_not_there_is_refused_by_its_own_flag(model_folder, kernel):
    with pytest.raises(InputError, match=f"attn_implementation='{kernel}'.*--attn_implementation sdpa"):
        load_model(ModelConfig(str(model_folder), attn_implementation=kernel))


def test_a_tokenizer_may_be_elsewhere(copied, tmp_path, data, capsys):
    AutoTokenizer.from_pretrained(copied).save_pretrained(tmp_path / "tokenizer")
    for file in copied.glob("token*"):
        file.unlink()
    assert main(["unlearn", *flags(copied, data, tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert re.search(r"model_name_or_path=.*no tokenizer.*--tokenizer_name_or_path", error)
    model, tokenizer = load_model(ModelConfig(str(copied), tokenizer_name_or_path=str(tmp_path / "tokenizer")))
    assert len(tokenizer) == model.config.vocab_size


def test_a_pad_beyond_the_embeddings_does_not_matter(copied, data, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(copied)
    assert main(["unlearn", *flags(copied, data, tmp_path / "run", per_device_train_batch_size=4)]) == 0


def test_contradictory_generation_settings_do_not_keep_a_model_from_being_saved(copied, data, tmp_path, caplog):
    kept = {"bos_token_id": 1, "eos_token_id": 1, "do_sample": False, "temperature": 0.9}
    (copied / "generation_config.json").write_text(json.dumps(kept))
    train = ["--train_data", str(data / "retain.jsonl"), "--output_dir", str(tmp_path / "tuned"), "--use_cpu", "true"]
    assert main(["finetune", "--model_name_or_path", str(copied), *train, "--max_steps", "1"]) == 0
    assert "only make sense with do_sample=true" in caplog.text
    assert json.loads((tmp_path / "tuned" / "generation_config.json").read_text())["temperature"] == 0.9
    (copied / "generation_config.json").write_text(json.dumps({**kept, "num_return_sequences": 3}))
    with pytest.raises(InputError, match="its generation settings contradict each other"):
        load_model(ModelConfig(str(copied)))


TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
TEXT |= {"num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}


def composite(name, vocabulary):
    text = {**TEXT, "vocab_size": vocabulary}
    if name == "gemma3":
        return Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4)
    vision = {"model_type": "clip_vision_model", "projection_dim": 16, **VISION}
    return LlavaConfig(text_config={"model_type": "llama", **text}, vision_config=vision)


@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"]])
@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_the_text_part_of_a_vision_language_model_is_adapted(tmp_path, name, targets):
    tokenizer = make_tokenizer()
    whole = AutoModelForImageTextToText.from_config(composite(name, len(tokenizer)))
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    base, _ = load_model(ModelConfig(str(tmp_path)))
    assert base.state_dict().keys() == whole.state_dict().keys()  # a merged model needs its vision part
    owner = decoder_layers(base)[0]
    model = attach_adapters(base, LoraConfig(r=2, target_modules=targets or "all-linear"))
    names = [name for name, _ in lora_layers(model)]
    assert len(names) == (4 if targets else 14)
    assert {id(module) for _, module in lora_layers(model)} <= {id(module) for module in owner.modules()}
    batch = pad_batch([{"input_ids": [5, 9, 60, 7], "labels": [5, 9, 60, 7]}], 0)
    labelled_tokens(model, batch).logp.sum().backward()
    gradients = [value.grad for part, value in model.named_parameters() if "lora_B" in part]
    assert all(bool(gradient.any()) for gradient in gradients)


def test_a_vision_language_model_is_unlearned_at_a_rank_beyond_its_layers(tmp_path, data, caplog):
    tokenizer, model = make_tokenizer(), tmp_path / "model"
    AutoModelForImageTextToText.from_config(composite("gemma3", len(tokenizer))).save_pretrained(model)
    tokenizer.save_pretrained(model)
    settings = {"loss": "gd", "init": "lora", "target_modules": "all-linear", "r": 64, "max_steps": 1}
    assert main(["unlearn", *flags(model, data, tmp_path / "run", **settings)]) == 0
    assert "layers that are too small for rank 64 get their largest rank: mlp.down_proj (32)" in caplog.text
    adapted = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(model), tmp_path / "run" / "adapter"
    )
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 14


def test_an_adapter_whose_weights_do_not_fit_is_refused(copied, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(copied), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    found = load_file(file)
    removed = next(iter(found))
    save_file({name: value for name, value in found.items() if name != removed}, file)
    with pytest.raises(InputError, match=r"model_name_or_path=.*it lacks tensors"):
        load_model(ModelConfig(str(tmp_path / "adapter")))
    save_file({**found, removed.replace("layers.0", "layers.7"): torch.ones(2, 2)}, file)
    with pytest.raises(InputError, match="it has tensors that its settings do not describe"):
        load_model(ModelConfig(str(tmp_path / "adapter")))
    file.write_bytes(POINTER)
    with pytest.raises(InputError, match="git-lfs pointer"):
        load_model(ModelConfig(str(tmp_path / "adapter")))
    file.unlink()
    torch.save(found, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled"):
        load_model(ModelConfig(str(tmp_path / "adapter")))
