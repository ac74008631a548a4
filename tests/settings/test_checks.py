"""The checks that all settings share."""

import math
from dataclasses import dataclass, fields

import numpy as np
import pytest

from unlora import settings
from unlora.settings import AttackConfig, ImportanceConfig, StoppingConfig
from unlora.settings.checks import at_least, between, positive, range_problems, value_problems
from unlora.settings.setting import setting


@dataclass
class Some:
    count: int = 3
    share: float = 0.5
    limit: float | None = None
    sizes: list[int] = setting([1, 2], "Sizes.")
    name: str = "x"
    flag: bool = False


def arguments_of(problems):
    return [problem.argument for problem in problems]


RANGES = {"count": at_least(1, "too few"), "share": between(0, 1, "a share"), "limit": positive(), "sizes": positive()}


@pytest.mark.parametrize(
    "change", [{}, {"share": 1e-9}, {"limit": 2}, {"count": np.int64(1)}, {"share": np.float32(0.5)}]
)
def test_numbers_of_the_right_type_in_their_range_pass(change):
    assert value_problems(Some(**change), RANGES) == []


@pytest.mark.parametrize("change", [{"count": 0}, {"share": 1.0}, {"share": 0}, {"limit": 0.0}, {"sizes": [1, 0]}])
def test_numbers_outside_their_range_are_named_with_the_reason_and_the_range(change):
    [problem] = value_problems(Some(**change), RANGES)
    [name] = change
    assert problem.argument == name
    assert problem.reason == RANGES[name].reason
    assert problem.fix == f"use {RANGES[name].text}"


@pytest.mark.parametrize(
    "change", [{"count": "3"}, {"count": 2.5}, {"count": None}, {"share": "0.5"}, {"count": True}, {"sizes": [1, "2"]}]
)
def test_values_of_another_type_than_annotated_are_refused_with_their_type(change):
    [problem] = value_problems(Some(**change), RANGES)
    [name] = change
    assert problem.argument == name
    assert "it is of type" in problem.reason


def test_infinity_passes_only_where_it_means_no_limit():
    assert arguments_of(value_problems(Some(limit=math.inf, share=math.nan))) == ["share", "limit"]
    assert arguments_of(value_problems(Some(limit=math.inf), infinite=("limit",))) == []
    for value in (math.nan, -math.inf):
        assert arguments_of(value_problems(Some(limit=value), infinite=("limit",))) == ["limit"]


def test_ranges_can_be_checked_on_any_object():
    class Other:
        count, limit = 0, None

    assert arguments_of(range_problems(Other, {"count": positive(), "limit": positive()})) == ["count"]


def test_each_instance_has_its_own_list():
    one, other = Some(), Some()
    one.sizes.append(3)
    assert other.sizes == [1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ImportanceConfig, "epsilon"),
        (ImportanceConfig, "sigma"),
        (StoppingConfig, "stop_auc"),
        (AttackConfig, "learning_rate"),
        (AttackConfig, "relearn_percent"),
    ],
)
def test_values_that_are_not_finite_numbers_are_refused(kind, name, value):
    given = [value] if name == "relearn_percent" else value
    assert set(arguments_of(kind(**{name: given}).problems())) == {name}


@pytest.mark.parametrize("name", [name for name in settings.__all__ if name[0].isupper() and not name.isupper()])
def test_every_setting_has_a_help_text_that_is_a_sentence_or_a_list(name):
    assert all(field.metadata["help"].strip().endswith((".", "...")) for field in fields(getattr(settings, name)))
