import pytest

from unlora.losses.dual import dual_ascent


def test_the_dual_variable_rises_above_the_limit_falls_below_it_and_is_never_negative():
    assert dual_ascent(1.0, 0.7, 1.0, dual_step_size=2.0, epsilon=0.5) == pytest.approx(1.4)
    assert dual_ascent(1.0, 0.2, 1.0, dual_step_size=2.0, epsilon=0.5) == pytest.approx(0.4)
    assert dual_ascent(0.1, 0.2, 1.0, dual_step_size=2.0, epsilon=0.5) == 0
    assert dual_ascent(1.0, 0.7, 0.1) == pytest.approx(1.7)


def test_the_dual_variable_stays_during_the_warm_up():
    assert [dual_ascent(1.0, 0.7, epoch, dual_warmup_epochs=2.0) for epoch in (1.5, 2.0, 2.5)] == [1.0, 1.0, 1.7]
