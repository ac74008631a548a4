"""A loss of the user's own is trained with as the built-in ones are."""

from __future__ import annotations

import pytest
import torch

from helpers.outputs import tokens
from unlora import InputError, UnlearnConfig, UnlearnTrainer, attach_adapters
from unlora.cli import main
from unlora.data import TextFormat, encode_records
from unlora.losses.retain import nll
from unlora.losses.table import LOSSES, RETAIN_LOSSES, Loss, register_loss
from unlora.models.forward import hidden_states


def capped(out, cap=2.0):
    """mean_t max(log p(y_t), −cap)."""
    return out.logp.clamp(min=-cap).mean()


@pytest.mark.usefixtures("registries")
def test_a_registered_loss_trains_with_its_settings(tiny_model, tokenizer, tmp_path):
    register_loss("capped", Loss(capped, "mean_t max(log p(y_t), −c)", "ours"))
    rows = [{"question": f"Who is number {i}?", "answer": "Nobody knows."} for i in range(4)]
    examples = encode_records(rows, TextFormat(tokenizer))
    config = UnlearnConfig(
        output_dir=str(tmp_path), loss="capped", loss_kwargs={"cap": 0.0}, max_steps=1, save_strategy="no", use_cpu=True
    )
    assert config.loss_settings == {"cap": 0.0}
    model = attach_adapters(tiny_model("llama"), config)
    trainer = UnlearnTrainer(model, config, examples[:2], examples[2:], processing_class=tokenizer)
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0  # the retain loss: capped at 0, the forget loss is 0
    assert capped(tokens([[0.5, 0.5], [0.25, 0.75]], [0, 0])).item() == pytest.approx(
        (torch.tensor([0.5, 0.25]).log()).mean().item()
    )


@pytest.mark.usefixtures("registries")
def test_a_registered_loss_is_in_the_command_line_s_table(capsys):
    register_loss("capped", Loss(capped, "mean_t max(log p(y_t), −c)", "ours"))
    register_loss("half_nll", Loss(lambda out: nll(out) / 2, "NLL/2", "ours"), RETAIN_LOSSES)
    assert main(["ls", "losses", "--markdown"]) == 0
    assert "| `capped` | mean_t max(log p(y_t), −c) | cap = 2.0 | – | nll | ours |" in capsys.readouterr().out
    assert UnlearnConfig(output_dir="x", loss="capped", retain_loss="half_nll").chosen_retain_loss == "half_nll"


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("name", "loss", "message"),
    [
        ("ihl", Loss(capped, "", ""), "a loss of this name already"),
        ("none", Loss(capped, "", ""), "a loss of this name already"),
        ("mine", Loss(capped, "", "", retain="nl"), "did you mean 'nll'"),
        ("mine", Loss(capped, "", "", forward=hidden_states), "hidden states"),
    ],
)
def test_what_would_not_work_is_refused_and_not_registered(name, loss, message):
    before = dict(LOSSES)
    with pytest.raises(InputError, match=message):
        register_loss(name, loss)
    assert before == LOSSES
