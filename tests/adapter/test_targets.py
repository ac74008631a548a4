"""Which layers of each model family can be adapted, and which are left out or refused."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from helpers.families import faults, support, table, tiny
from helpers.models import make_tokenizer
from helpers.pages import ROOT
from helpers.runs import flags
from unlora.adapter import check_adapter_settings
from unlora.adapter.targets import left_out
from unlora.cli import main

# One family for each kind of modelling code. The others differ only in names and sizes.
KINDS = (
    *("Llama, 1 to 3.3", "Falcon", "OPT", "GPT-2", "BLOOM", "Gemma 3n", "Mixtral", "Qwen3-Next", "gpt-oss"),
    *("DeepSeek-V3, R1", "Llama 4", "Phi-3.5-MoE", "Mamba", "Falcon-H1", "LFM2"),
)


def test_the_table_of_the_documentation_is_what_can_be_adapted():
    assert f"<!-- python tests/helpers/families.py -->\n\n{table()}\n" in (ROOT / "docs" / "models.md").read_text()


@pytest.mark.parametrize("name", KINDS)
def test_everything_works_with_what_is_adapted(name):
    """Check the predictions, gradients, start, training and export of a family that the table lists as supported."""
    model = tiny(name)
    assert support(name, model).support in ("full", "partly")
    assert list(faults(model)) == []


def test_the_share_of_what_is_left_out_is_that_of_the_weights():
    """The experts and the router of a layer of Mixtral are left out, and its attention is adapted.

    The 4 experts have (96 + 48)·32 weights each, the router 4·32, and the attention 2·32·32 + 2·16·32.
    """
    rest, attention = 4 * (96 + 48) * 32 + 4 * 32, 2 * 32 * 32 + 2 * 16 * 32
    found = left_out(tiny("Mixtral"))
    assert found.names == ["mlp.gate", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert found.share == pytest.approx(rest / (rest + attention))
    assert str(found).endswith("mlp.experts.down_proj (86 % of the weights outside embeddings and output head)")
    assert left_out(tiny("Llama, 1 to 3.3")) is None


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        (
            "Mamba",
            "x_proj",
            "layers.0.mixer.x_proj and 1 more': the layer around it reads its weight directly",
        ),
        ("Llama 4", "router", "it returns more than its product, as routers do"),
        ("GLM-4.5", "gate_proj", "PEFT mistakes its name for the name of stacked expert weights"),
        ("Gemma 3n", "altup.modality_router", "it runs more than once in a pass"),
    ],
)
def test_a_layer_that_cannot_be_adapted_is_refused_with_its_name_and_the_reason(name, target, reason):
    config = LoraConfig(r=2, target_modules=[target])
    [problem] = check_adapter_settings(tiny(name), config)
    assert reason in str(problem)
    assert target in str(problem.value)


def saved(name, folder):
    """Save a tiny model and a tokenizer with the same vocabulary, and return the folder."""
    tokenizer = make_tokenizer()
    tiny(name, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("Falcon", None),
        (
            "gpt-oss",
            "not adapted: mlp.router, mlp.experts.gate_up_proj, mlp.experts.down_proj (",
        ),
        ("Mixtral", "not adapted: mlp.gate, mlp.experts.gate_up_proj, mlp.experts.down_proj (86 % of"),
    ],
)
def test_a_run_names_what_it_leaves_out_once(name, note, data, tmp_path, caplog):
    model = saved(name, tmp_path / "model")
    assert main(["unlearn", *flags(model, data, tmp_path / "run", max_steps=1, target_modules="all-linear")]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert caplog.text.count("not adapted") == (note is not None)
    assert note is None or note in caplog.text


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("RWKV-4", {}, "model_name_or_path='RwkvForCausalLM': models of type rwkv ignore the attention mask"),
        ("Mamba", {"target_modules": "out_proj"}, "mixer.out_proj and 1 more': the layer around it reads its weight"),
        ("Mixtral", {"target_modules": "w1"}, "target_modules=['w1']: the model has no such linear layer"),
    ],
)
def test_what_cannot_work_is_refused_before_the_weights_are_read(name, more, message, data, tmp_path, capfd):
    model = saved(name, tmp_path / "model")
    save_file({"nothing": torch.zeros(1)}, model / "model.safetensors", metadata={"format": "pt"})
    assert main(["unlearn", *flags(model, data, tmp_path / "run", max_steps=1, **more)]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
