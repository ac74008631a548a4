"""Which stopping rules are refused before anything is loaded."""

import pytest

from unlora.settings import StoppingConfig


@pytest.mark.parametrize("change", [{"holdout_split": "test"}, {"stop_every": 2}, {"stop_auc": 0.6}])
def test_a_stopping_rule_without_unseen_rows_is_refused(change):
    [problem] = StoppingConfig(**change).problems()
    assert problem.argument == next(iter(change))
    assert "no holdout_data" in problem.reason
    assert StoppingConfig("unseen.jsonl", **change).problems() == []
