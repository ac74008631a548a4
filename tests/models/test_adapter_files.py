"""Adapters from untrusted sources: only a complete adapter in safetensors is loaded."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from helpers.models import with_lora
from unlora import InputError
from unlora.models.load import load_adapter

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("adapter")
    with_lora(tiny_model("llama")).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "adapter")


def change(adapter, act):
    tensors = load_file(adapter / WEIGHTS)
    act(tensors, sorted(tensors)[0])
    save_file(tensors, adapter / WEIGHTS)


def test_a_whole_adapter_is_loaded_as_it_is(adapter, tiny_model):
    loaded = get_peft_model_state_dict(load_adapter(tiny_model("llama"), str(adapter)))
    for name, tensor in load_file(adapter / WEIGHTS).items():
        assert torch.equal(loaded[name], tensor)


def rename(tensors, name):
    tensors[name.replace("lora", "lore")] = tensors.pop(name)


def halve(tensors, name):
    tensors[name] = tensors[name][:1].clone()


def overwrite_base(tensors, name):
    tensors["base_model.model.model.norm.weight"] = torch.zeros(32)


CHANGES = {
    "missing": (lambda tensors, name: tensors.pop(name), "it lacks tensors: base_model.*weight"),
    "all missing": (lambda tensors, name: tensors.clear(), "it lacks tensors.*and 27 more"),
    "renamed": (rename, "it lacks tensors.*\n.*it has tensors that its settings do not describe"),
    "part of one": (halve, "PEFT cannot load it on this model .*size mismatch"),
    "of the base": (
        overwrite_base,
        "it has tensors that its settings do not describe: base_model.model.model.norm.weight",
    ),
    "not numbers": (
        lambda tensors, name: tensors[name].fill_(torch.nan),
        "it has tensors with values that are not finite",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_tensors_that_are_missing_renamed_partial_or_too_many_are_refused(adapter, tiny_model, case):
    act, message = CHANGES[case]
    change(adapter, act)
    with pytest.raises(InputError, match=f"adapter='.*'(?s:.*){message}"):
        load_adapter(tiny_model("llama"), str(adapter))


def test_a_pickle_is_never_read(adapter, tiny_model):
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"adapter_model\.bin is a pickle, which can run code"):
        load_adapter(tiny_model("llama"), str(adapter))


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", '{"peft_type": null}', '{"peft_type": "none"}', '{"peft_type": "LORA", "r": "x"}'),
        *('{"peft_type": "LORA", "target_modules": 3}', '{"peft_type": "XLORA", "adapters": {"a": "b"}}'),
        *('{"peft_type": "LORA", "r": 8, "r": 9}', '{"peft_type": "LORA", "lora_alpha": NaN}', "\ud800", "[" * 99_999),
    ],
)
def test_invalid_or_unsafe_settings_are_refused(adapter, tiny_model, text):
    (adapter / SETTINGS).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(InputError, match="adapter=") as caught:
        load_adapter(tiny_model("llama"), str(adapter))
    assert len(str(caught.value)) < 1000


def test_an_adapter_that_applies_to_some_tokens_only_is_refused(adapter, tiny_model):
    settings = json.loads((adapter / SETTINGS).read_text())
    (adapter / SETTINGS).write_text(json.dumps({**settings, "alora_invocation_tokens": [3, 4]}))
    with pytest.raises(InputError, match="only applies after certain tokens"):
        load_adapter(tiny_model("llama"), str(adapter))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff" * 8 + b"{}", b"weights"])
def test_weights_that_are_no_safetensors_are_refused(adapter, tiny_model, content):
    (adapter / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match="adapter="):
        load_adapter(tiny_model("llama"), str(adapter))


def test_virtual_tokens_are_refused_by_name(adapter, tiny_model):
    settings = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    (adapter / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(InputError, match="adapters of type PROMPT_TUNING put virtual tokens before the text"):
        load_adapter(tiny_model("llama"), str(adapter))


def test_settings_of_another_rank_are_refused(adapter, tiny_model):
    settings = json.loads((adapter / SETTINGS).read_text())
    (adapter / SETTINGS).write_text(json.dumps({**settings, "r": 8}))
    with pytest.raises(InputError, match="size mismatch"):
        load_adapter(tiny_model("llama"), str(adapter))
