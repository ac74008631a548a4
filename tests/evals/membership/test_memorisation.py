import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlora.common.errors import InputError
from unlora.evals.membership.memorisation import exact_memorisation, extraction_strength

hits = st.lists(st.booleans(), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("matches", "exact", "strength"),
    [
        ([1, 1, 1, 1], 1, 1),
        ([0, 1, 1, 1], 0.75, 0.75),
        ([1, 0, 1, 1], 0.75, 0.5),
        ([1, 1, 1, 0], 0.75, 0),
        ([0, 0, 0, 0], 0, 0),
        ([1], 1, 1),
        ([0], 0, 0),
    ],
)
def test_both_metrics_by_hand(matches, exact, strength):
    """If only the second of four tokens is wrong, two must be given, so extraction strength is 1 − 2/4."""
    assert exact_memorisation(matches) == exact
    assert extraction_strength(matches) == strength


@given(hits)
def test_extraction_strength_is_its_definition(matches):
    needed = next(k for k in range(len(matches) + 1) if all(matches[k:]))
    assert extraction_strength(matches) == 1 - needed / len(matches)


@given(hits)
def test_extraction_strength_is_at_most_exact_memorisation_and_both_are_1_together(matches):
    exact, strength = exact_memorisation(matches), extraction_strength(matches)
    assert 0 <= strength <= exact + 1e-12 <= 1 + 1e-12
    assert (exact == 1) == (strength == 1)


@pytest.mark.parametrize("function", [exact_memorisation, extraction_strength])
@pytest.mark.parametrize("matches", [[], [[True]]])
def test_matches_that_are_not_a_row_of_tokens_are_refused(function, matches):
    with pytest.raises(InputError, match="matches="):
        function(matches)
