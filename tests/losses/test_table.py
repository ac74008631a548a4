"""Combinations of losses and settings that are valid, errors for those that are not, and losses that users add."""

from __future__ import annotations

import math

import pytest
import torch

from helpers.outputs import random_outputs, tokens
from unlora import InputError, UnlearnConfig, UnlearnTrainer, attach_adapters
from unlora.cli import main
from unlora.data import TextFormat, encode_records
from unlora.losses import LOSSES, RETAIN_LOSSES, Loss, register_loss
from unlora.losses.retain import nll
from unlora.losses.table import check_losses
from unlora.models.forward import hidden_states
from unlora.settings.names import NO_RETAIN, loss_problems


@pytest.mark.parametrize("name", LOSSES)
def test_a_known_loss_with_its_own_settings_has_no_problem(name):
    assert check_losses(name, None, {}) == []
    assert check_losses(name, LOSSES[name].retain, LOSSES[name].settings) == []


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"pdu"}))
def test_any_loss_but_the_one_that_sets_a_retain_weight_works_without_a_retain_loss(name):
    assert check_losses(name, NO_RETAIN, {}) == []


@pytest.mark.parametrize("retain_loss", RETAIN_LOSSES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_retain_loss_is_accepted_where_it_can_be_computed_from_the_forget_loss_s_forward_pass(name, retain_loss):
    out = random_outputs(LOSSES[name], 0)
    try:
        computable = bool(RETAIN_LOSSES[retain_loss](out).isfinite())
    except AttributeError:  # the forward pass does not compute the tensor that it reads
        computable = False
    defined_without_one = name in ("ga", "ceu")
    assert (check_losses(name, retain_loss, {}) == []) == (computable and not defined_without_one)


def test_the_arguments_of_a_loss_s_functions_are_what_it_takes_and_its_settings():
    loss = Loss(
        lambda logp, ref_logits, beta=0.5: beta * logp.mean(),
        "",
        "",
        forward=lambda model, batch, layer=3: None,
        update_weight=lambda weight, retain_loss, step=0.1: weight,
    )
    assert loss.inputs == ["logp", "ref_logits"]
    assert loss.settings == {"layer": 3, "beta": 0.5, "step": 0.1}
    assert (loss.needs_reference_logp, loss.needs_reference_pass) == (False, True)
    out = random_outputs(LOSSES["ga"], 0)
    assert loss(out, beta=2.0, step=9).item() == pytest.approx(2 * out.logp.mean().item())


@pytest.mark.parametrize(
    ("loss", "retain_loss", "settings", "messages"),
    [
        ("ihll", None, {}, ["loss='ihll'", "did you mean 'ihl'"]),
        ("ihl", "nl", {}, ["retain_loss='nl'", "did you mean 'nll'"]),
        ("npo", None, {"betta": 0.1}, ["loss_kwargs='betta'", "did you mean 'beta'"]),
        ("ihl", None, {"beta": 0.1}, ["loss_kwargs='beta'", "'ihl' has no settings"]),
        ("npo", None, {"beta": 0}, ["loss_kwargs['beta']=0", "positive"]),
        ("npo", None, {"beta": "0.1"}, ["loss_kwargs['beta']='0.1'", "positive"]),
        ("npo", None, {"beta": math.nan}, ["loss_kwargs['beta']=nan", "positive"]),
        ("npo", None, {"beta": True}, ["loss_kwargs['beta']=True", "positive"]),
        ("rmu", None, {"layer": True}, ["loss_kwargs['layer']=True", "whole number"]),
        ("simnpo", None, {"delta": -1}, ["loss_kwargs['delta']=-1", "0 or more"]),
        ("satimp", None, {"beta1": -0.5}, ["loss_kwargs['beta1']=-0.5", "0 or more"]),
        ("satimp", None, {"beta2": math.inf}, ["loss_kwargs['beta2']=inf", "0 or more"]),
        ("rmu", None, {"layer": 1.5}, ["loss_kwargs['layer']=1.5", "whole number"]),
        ("rmu", None, {"layer": -1}, ["loss_kwargs['layer']=-1", "whole number"]),
        ("rmu", None, {"steering_coeff": 0}, ["loss_kwargs['steering_coeff']=0", "positive"]),
        ("pdu", None, {"dual_step_size": 0.0}, ["loss_kwargs['dual_step_size']=0.0", "positive"]),
        ("ga", "nll", {}, ["retain_loss='nll'", "without a retain term", "use 'gd'"]),
        ("ga", "kl", {}, ["retain_loss='kl'", "without a retain term", "use 'gd'"]),
        ("ceu", "nll", {}, ["retain_loss='nll'", "without a retain term", "remove retain_loss"]),
        ("pdu", "none", {}, ["retain_loss='none'", "adjusts the weight of a retain loss", "use 'nll'"]),
        ("rmu", "nll", {}, ["retain_loss='nll'", "computed from hidden states", "use 'hidden_mse'"]),
        ("npo", "hidden_mse", {}, ["retain_loss='hidden_mse'", "computed from predictions", "use 'nll' or 'kl'"]),
    ],
)
def test_a_wrong_choice_of_losses_is_one_problem_with_its_fix(loss, retain_loss, settings, messages):
    [problem] = [*loss_problems(loss, retain_loss), *check_losses(loss, retain_loss, settings)]
    assert all(message in str(problem) for message in messages)


def test_all_wrong_choices_are_told_at_once():
    wrong = {"loss": "npo", "retain_loss": "nl", "teacher": "me", "loss_kwargs": {"betta": 1, "beta": -1}}
    with pytest.raises(InputError) as caught:
        UnlearnConfig(output_dir="run", **wrong)
    found = [problem.argument for problem in caught.value.problems]
    assert found == ["loss_kwargs", "loss_kwargs['beta']", "retain_loss", "teacher"]
    assert [problem.argument for problem in loss_problems("ihll", "nl")] == ["loss", "retain_loss"]


def capped(logp, cap=2.0):
    """mean_t max(log p(y_t), −cap)."""
    return logp.clamp(min=-cap).mean()


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
    assert trainer.state.log_history[-1]["train_loss"] > 0  # the retain loss alone: with cap = 0, the forget loss is 0
    assert LOSSES["capped"](tokens([[0.5, 0.5], [0.25, 0.75]], [0, 0])).item() == pytest.approx(
        (torch.tensor([0.5, 0.25]).log()).mean().item()
    )


@pytest.mark.usefixtures("registries")
def test_a_registered_loss_is_in_the_command_line_s_table(capsys):
    register_loss("capped", Loss(capped, "mean_t max(log p(y_t), −c)", "ours"))
    register_loss("half_nll", Loss(lambda logp: nll(logp) / 2, "NLL/2", "ours"), RETAIN_LOSSES)
    assert main(["ls", "losses", "--markdown"]) == 0
    assert "| `capped` | mean_t max(log p(y_t), −c) | cap = 2.0 | – | nll | ours |" in capsys.readouterr().out
    assert UnlearnConfig(output_dir="x", loss="capped", retain_loss="half_nll").chosen_retain_loss == "half_nll"


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("name", "loss", "message"),
    [
        ("ihl", Loss(capped, "", ""), "another loss has this name"),
        ("none", Loss(capped, "", ""), "it stands for no retain loss"),
        ("my+loss", Loss(capped, "", ""), "it is part of flags and of the names of folders"),
        ("mine", Loss(capped, "", "", retain="nl"), "did you mean 'nll'"),
        ("mine", Loss(lambda states: states.mean(), "", "", forward=hidden_states), "computed from hidden states"),
        ("mine", Loss(lambda logps: logps.mean(), "", ""), "logps.*unknown name.*did you mean 'logp'"),
        ("mine", Loss(lambda states: states.mean(), "", ""), "states.*unknown name"),
    ],
)
def test_a_loss_that_would_not_work_is_refused_and_not_registered(name, loss, message):
    before = dict(LOSSES)
    with pytest.raises(InputError, match=message):
        register_loss(name, loss)
    assert before == LOSSES


@pytest.mark.usefixtures("registries")
def test_a_retain_loss_cannot_take_what_is_computed_for_the_forget_set_only():
    with pytest.raises(InputError, match=r"ref_logp.*unknown name"):
        register_loss("mine", Loss(lambda logp, ref_logp: logp.mean(), "", ""), RETAIN_LOSSES)
