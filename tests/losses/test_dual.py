import pytest

from unlora.losses.dual import dual_ascent


def test_the_dual_variable_rises_above_the_limit_falls_below_it_and_is_never_negative():
    assert dual_ascent(1.0, 0.7, dual_step_size=2.0, epsilon=0.5) == pytest.approx(1.4)
    assert dual_ascent(1.0, 0.2, dual_step_size=2.0, epsilon=0.5) == pytest.approx(0.4)
    assert dual_ascent(0.1, 0.2, dual_step_size=2.0, epsilon=0.5) == 0
    assert dual_ascent(1.0, 0.7) == pytest.approx(1.7)
