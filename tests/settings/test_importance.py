"""The size of the retain sample, and settings of the importance that are refused before anything is loaded."""

from unlora.settings import ImportanceConfig


def arguments_of(problems):
    return [problem.argument for problem in problems]


def test_the_retain_sample_is_as_large_as_the_forget_set_but_not_tiny():
    assert ImportanceConfig().retain_size(400) == 400
    assert ImportanceConfig().retain_size(6) == 32
    assert ImportanceConfig(retain_samples=6).retain_size(400) == 6
    passes = ImportanceConfig(moments_per="batch", importance_batch_size=4, forget_passes=10)
    assert passes.retain_size(400) == 4000


def test_a_missing_importance_file_is_refused(tmp_path):
    [problem] = ImportanceConfig(importance_file=str(tmp_path / "i.safetensors")).problems()
    assert (problem.argument, problem.reason) == ("importance_file", "there is no such file")
