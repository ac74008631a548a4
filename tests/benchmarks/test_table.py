"""The registry of benchmarks: added benchmarks, the benchmark of a log, and former names of commands."""

from __future__ import annotations

import json

import pytest

from unlora.benchmarks import BENCHMARKS, Benchmark, Measured, Metric, Reading, benchmark_of, register_benchmark
from unlora.benchmarks.interface import Options
from unlora.cli import main
from unlora.common.errors import InputError
from unlora.common.files import write_json


class Shouting(Benchmark):
    name = "shouting"
    metrics = {"loud": Metric("loudness", "low")}  # noqa: RUF012

    def read(self, log, retrained=None):
        return Reading({"loud": Measured(log["loud"]), "louder": None}, examples={"all": 3})


@pytest.fixture
def shouting(registries):
    register_benchmark(Shouting())


def test_an_own_benchmark_reads_its_logs(shouting, tmp_path, capsys):
    write_json(tmp_path / "log.json", {"benchmark": "shouting", "loud": 0.5})
    assert main(["evaluate", "--benchmark", "shouting", "--log", str(tmp_path / "log.json")]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[1:4:2] for line in shown.splitlines() if line.startswith("│")] == [
        ["loudness", "0.5"],
        ["louder", "not"],
    ]
    assert "examples: all 3" in shown
    assert main(["evaluate", "--benchmark", "shouting", "--log", str(tmp_path / "log.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"loud": 0.5, "louder": None}


def test_a_log_of_another_benchmark_is_refused(shouting, tmp_path, capsys):
    write_json(tmp_path / "log.json", {"tasks": {}})
    assert main(["evaluate", "--benchmark", "shouting", "--log", str(tmp_path / "log.json")]) == 2
    assert "it is not a log of shouting" in capsys.readouterr().err


def test_a_name_is_given_once(shouting):
    with pytest.raises(InputError, match="name='shouting': another benchmark has this name"):
        register_benchmark(Shouting())


@pytest.mark.parametrize(
    ("log", "name"),
    [
        ({"benchmark": "muse-mini", "scores": {}}, "muse-mini"),
        ({"benchmark": "shouting", "loud": 0.5}, "shouting"),
        ({"scores": {}, "metrics": {}}, "muse"),  # logs of earlier versions do not name their benchmark
        ({"asked": [], "tasks": {}}, "wmdp"),
    ],
)
def test_a_log_finds_its_benchmark(shouting, log, name):
    assert benchmark_of(log).name == name


def test_a_log_of_no_benchmark_is_named():
    with pytest.raises(ValueError, match="not a log of any registered benchmark"):
        benchmark_of({"loss": 1.0})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_says_what_its_numbers_mean(name, tmp_path):
    benchmark = BENCHMARKS[name]
    assert benchmark.name == name
    assert benchmark.title
    assert benchmark.needs
    assert {metric.better for metric in benchmark.metrics.values()} <= {"high", "low", "zero"}
    assert set(benchmark.plane) <= set(benchmark.metrics)
    assert set(benchmark.after) <= set(benchmark.splits)
    assert isinstance(benchmark.problems(Options(tmp_path)), list)


@pytest.mark.parametrize(
    ("former", "current"),
    [
        ("evaluate-muse", "unlora evaluate --benchmark muse"),
        ("evaluate-tasks", "unlora evaluate --benchmark wmdp"),
        ("evaluate-log", "unlora evaluate"),
    ],
)
def test_a_former_command_names_the_current_one(former, current, tmp_path, capsys):
    assert main([former, "--log", str(tmp_path / "no.json")]) == 2
    error = capsys.readouterr().err
    assert f"`unlora {former}` is now `{current}`" in error
    assert "log=" in error


def test_tuned_settings_of_a_method_take_precedence_over_those_of_its_loss():
    class Tuned(Shouting):
        tuned = {"distil": {"learning_rate": 4e-3, "r": 4}, "vila+distil": {"learning_rate": 1e-3}}  # noqa: RUF012

    assert Tuned().tuned_for("lora+distil") == {"learning_rate": 4e-3, "r": 4}
    assert Tuned().tuned_for("vila+distil") == {"learning_rate": 1e-3, "r": 4}
    assert Tuned().tuned_for("lora+distil@fast") == Tuned().tuned_for("lora+distil")
    assert Tuned().tuned_for("vila+ihl") == {}
