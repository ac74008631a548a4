"""Which importance settings are refused before anything is loaded."""

from dataclasses import replace

from unlora.settings import ImportanceConfig


def arguments_of(problems):
    return [problem.argument for problem in problems]


def test_a_convergence_that_would_have_no_effect_is_refused():
    assert arguments_of(ImportanceConfig(retain_convergence=0.9, retain_samples=50).problems()) == [
        "retain_convergence"
    ]
    batches = ImportanceConfig(retain_convergence=0.9, moments_per="batch", importance_batch_size=4)
    assert arguments_of(batches.problems()) == ["retain_convergence"]
    for fine in (None, ImportanceConfig.retain_convergence):
        assert replace(batches, retain_convergence=fine).problems() == []
    assert ImportanceConfig(retain_convergence=0.9).problems() == []


def test_a_missing_importance_file_is_refused(tmp_path):
    [problem] = ImportanceConfig(importance_file=str(tmp_path / "i.safetensors")).problems()
    assert (problem.argument, problem.reason) == ("importance_file", "there is no such file")
