"""Which losses and settings go together, and what is said of those that do not."""

import math

import pytest

from unlora.losses.dual import dual_ascent
from unlora.losses.table import LOSSES, NO_RETAIN, RETAIN_LOSSES, check_losses


@pytest.mark.parametrize("name", LOSSES)
def test_a_known_loss_with_its_own_settings_has_no_problem(name):
    assert check_losses(name, None, {}) == []
    assert check_losses(name, LOSSES[name].retain, LOSSES[name].settings) == []


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"pdu"}))
def test_any_loss_but_the_one_that_sets_a_retain_weight_works_without_a_retain_loss(name):
    assert check_losses(name, NO_RETAIN, {}) == []


@pytest.mark.parametrize("retain_loss", RETAIN_LOSSES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_forget_and_a_retain_loss_go_together_if_one_forward_pass_serves_both(name, retain_loss):
    loss = LOSSES[name]
    fits = loss.retain != NO_RETAIN and loss.forward is RETAIN_LOSSES[retain_loss].forward
    assert (check_losses(name, retain_loss, {}) == []) == fits


def test_settings_are_the_arguments_of_the_loss_s_functions():
    assert LOSSES["npo"].settings == {"beta": 0.1}
    assert LOSSES["npo_mean"].settings == {"beta": 0.1}
    assert LOSSES["simnpo"].settings == {"beta": 4.5, "delta": 0.0}
    assert LOSSES["dpo"].settings == {"beta": 0.1}
    assert LOSSES["undial"].settings == {"beta": 10.0}
    assert LOSSES["wga"].settings == {"beta": 1.0}
    assert LOSSES["satimp"].settings == {"beta1": 5.0, "beta2": 1.0}
    assert LOSSES["rmu"].settings == {"layer": 7, "steering_coeff": 6.5, "seed": 42}
    assert LOSSES["pdu"].settings == {"dual_step_size": 1.0, "epsilon": 0.0}
    assert LOSSES["ihl"].settings == {}


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
        ("ceu", "nll", {}, ["retain_loss='nll'", "without a retain term", "leave retain_loss out"]),
        ("pdu", "none", {}, ["retain_loss='none'", "weight of a retain loss", "use 'nll'"]),
        ("rmu", "nll", {}, ["retain_loss='nll'", "computed on hidden states", "use 'hidden_mse'"]),
        ("npo", "hidden_mse", {}, ["retain_loss='hidden_mse'", "computed on predictions", "use 'nll' or 'kl'"]),
    ],
)
def test_a_wrong_choice_of_losses_is_one_problem_with_its_fix(loss, retain_loss, settings, messages):
    [problem] = check_losses(loss, retain_loss, settings)
    assert all(message in str(problem) for message in messages)


def test_all_wrong_choices_are_told_at_once():
    assert [problem.argument for problem in check_losses("ihll", "nl", {})] == ["loss", "retain_loss"]
    problems = check_losses("npo", "nl", {"betta": 1, "beta": -1})
    assert [problem.argument for problem in problems] == ["retain_loss", "loss_kwargs", "loss_kwargs['beta']"]


def test_the_dual_variable_rises_above_the_limit_falls_below_it_and_is_never_negative():
    assert dual_ascent(1.0, 0.7, dual_step_size=2.0, epsilon=0.5) == pytest.approx(1.4)
    assert dual_ascent(1.0, 0.2, dual_step_size=2.0, epsilon=0.5) == pytest.approx(0.4)
    assert dual_ascent(0.1, 0.2, dual_step_size=2.0, epsilon=0.5) == 0
    assert dual_ascent(1.0, 0.7) == pytest.approx(1.7)
