import pytest

from unlora.common.errors import InputError, Problem, raise_if, unknown_name


def test_a_problem_says_argument_value_reason_and_fix():
    assert str(Problem("r", 0, "too small", "use 1")) == "r=0: too small. Fix: use 1."


def test_all_problems_are_raised_at_once():
    problems = [Problem("r", 0, "too small", "use 1"), Problem("loss", "x", "unknown", "use ihl")]
    with pytest.raises(InputError) as caught:
        raise_if(iter(problems))
    assert caught.value.problems == tuple(problems)
    assert str(caught.value).splitlines() == [str(problem) for problem in problems]
    assert isinstance(caught.value, ValueError)


def test_no_problem_raises_nothing():
    raise_if([])


def test_an_unknown_name_is_answered_with_the_nearest_and_all_others():
    problem = unknown_name("loss", "ihll", ["npo", "ihl", "gd"])
    assert (problem.argument, problem.value) == ("loss", "ihll")
    assert problem.fix == "did you mean 'ihl'? Known: gd, ihl, npo"


@pytest.mark.parametrize("value", ["something", None, 3])
def test_a_name_without_a_close_match_gets_only_the_list(value):
    assert unknown_name("loss", value, ["npo", "ihl"]).fix == "use one of ihl, npo"
