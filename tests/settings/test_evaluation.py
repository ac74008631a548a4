"""The choice of evaluation sets and of the retrained model to compare with."""

import pytest

from unlora.settings import EvalConfig, OwnSetsSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "forget_data='': there is nothing to evaluate. Fix: name forget_data, retain_data or both, or eval_data"),
        (
            {"eval_data": "tofu", "retain_data": "r.jsonl"},
            "eval_data='tofu': forget_data and retain_data also name the",
        ),
        ({"eval_data": "tofu"}, None),
        ({"forget_data": "f.jsonl"}, None),
    ],
)
def test_either_own_sets_or_eval_data_must_be_named(settings, message):
    found = [str(problem) for problem in OwnSetsSettings(**settings).problems()]
    assert [text.startswith(message) for text in found] == [True] if message else found == []


def test_a_retrained_model_is_named_by_itself_or_by_a_log_that_exists(tmp_path):
    log = tmp_path / "retrained.json"
    [problem] = EvalConfig(retrained=str(log)).problems()
    assert problem.argument == "retrained"
    assert problem.reason == "there is no such file"
    log.write_text("{}")
    assert EvalConfig(retrained=str(log)).problems() == EvalConfig(retrained="some/model").problems() == []
