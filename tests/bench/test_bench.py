"""Grids of real runs: resuming, failed cells, plugins, retrained models, and the table of results."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from helpers.models import make_tokenizer, tiny_config
from unlora.bench import Cell, Progress, Results, grid, waves
from unlora.bench.runner import _environment, launcher
from unlora.bench.sharing import shared_importance
from unlora.bench.table import best, markdown, to_csv
from unlora.benchmarks import BENCHMARKS, Benchmark, Metric
from unlora.cli import main
from unlora.cli.arguments import fill, read
from unlora.cli.bench import command_of
from unlora.cli.bench import flags as forwarded
from unlora.common import plugins
from unlora.common.errors import InputError
from unlora.common.files import LOCK, write_json, write_jsonl
from unlora.common.reading import read_yaml
from unlora.losses import LOSSES, Loss, register_loss
from unlora.runs.stages import is_whole
from unlora.settings import BenchConfig


def rows(kind, count):
    return [
        {
            "question": f"Who keeps {kind} {i}?",
            "answer": f"Ada {i} does.",
            "paraphrased_answer": f"It is Ada {i}.",
            "perturbed_answer": [f"It is Bob {i}.", "It is nobody."],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tofu(tmp_path_factory):
    """Return a folder with a tiny model and data in TOFU's schema."""
    folder = tmp_path_factory.mktemp("tofu")
    sizes = {"forget01": 3, "retain99": 4, "forget01_perturbed": 3, "retain_perturbed": 2}
    for name, count in (sizes | {"real_authors_perturbed": 2, "world_facts_perturbed": 2}).items():
        write_jsonl(folder / "data" / f"{name}.jsonl", rows(name.removesuffix("_perturbed"), count))
    long = {**rows("words", 1)[0], "answer": "Ada does. " * 200}  # more tokens than the model has positions
    write_jsonl(folder / "data" / "retain_perturbed.jsonl", [*rows("retain", 2), long])
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer))).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def arguments(tofu, out, *more, methods=("pissa+ihl", "lora+gd"), **changes):
    settings = {
        "output_dir": out,
        "seeds": 1,
        "splits": "forget01",
        "model_name_or_path": tofu / "model",
        "data": tofu / "data",
        "r": 2,
        "max_steps": 1,
        "max_new_tokens": 4,
        "save_strategy": "no",
        "use_cpu": True,
        **changes,
    }
    parts = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return ["bench", "tofu", *parts, "--methods", *methods, *more]


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}


def wait_for_locks(folder):
    """Wait until the processes that write below a folder have ended. They may outlive the one that was killed."""
    for path in folder.rglob(f"*{LOCK}"):
        with FileLock(path):
            pass


@pytest.mark.slow
def test_a_killed_bench_goes_on_without_repeating_finished_cells(tofu, tmp_path, capsys):
    out = tmp_path / "bench"
    argv = arguments(tofu, out)
    endless = tmp_path / "endless.yaml"  # the second cell cannot end before the bench is killed
    endless.write_text("lora+gd: {max_steps: 1000000}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "unlora", *argv, "--settings", str(endless)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    first = out / "cells/forget01/pissa+ihl/seed-0/run"
    while not is_whole(first, "report.html") and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for_locks(out)
    before = stamps(out)
    assert len(before) == 1  # the second cell was interrupted
    for place in (out, out / "logs", first, first.parent):
        (place / ".cut-off.1.partial").mkdir()  # as if the bench had been killed while writing here
    assert main(argv) == 0
    assert not list(out.rglob("*.partial"))
    shown = capsys.readouterr().out
    assert "1/1 forget01 lora+gd seed 0: done" in shown
    assert before.items() < stamps(out).items()
    assert len(stamps(out)) == 2

    # The original model was evaluated once for both cells.
    assert len(list((out / "logs").glob("*.json"))) == 1
    before = {path.read_bytes() for path in out.rglob("eval_original.json")}
    assert len(before) == 1
    page = (out / "compare.html").read_text()
    assert "<th scope=row>pissa+ihl</th>" in page
    assert "<th scope=row>lora+gd</th>" in page
    lines = (out / "results.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["original", "pissa+ihl", "lora+gd"]
    values = list(csv.DictReader((out / "results.csv").open()))
    metrics = json.loads((out / "cells/forget01/pissa+ihl/seed-0/run/metrics.json").read_text())
    [utility] = [row for row in values if (row["method"], row["metric"]) == ("pissa+ihl", "model utility")]
    assert float(utility["mean"]) == pytest.approx(metrics["unlearned"]["model_utility"])

    # The command of a row reproduces this row and nothing else.
    [command] = [line for line in lines if line.endswith("# forget01, lora+gd")]
    again = tmp_path / "again"
    assert main(shlex.split(command.split("  #")[0].replace("NEW_FOLDER", str(again)))[1:]) == 0
    made = [path for path in again.rglob("adapter_model.safetensors") if path.parent.name == "adapter"]
    assert [path.relative_to(again).parts[:4] for path in made] == [("cells", "forget01", "lora+gd", "seed-0")]
    assert made[0].read_bytes() == (out / made[0].relative_to(again)).read_bytes()
    [command] = [line for line in lines if line.endswith("# forget01, original")]
    assert main(shlex.split(command.split("  #")[0].replace("NEW_FOLDER", str(again)))[1:]) == 0
    [log] = (out / "logs").glob("*.json")
    assert (again / log.name).read_bytes() == log.read_bytes()

    assert main(arguments(tofu, out, learning_rate=1e-5)) == 2
    assert "it is finished, with other settings than these" in capsys.readouterr().err
    shutil.copytree(tofu, tmp_path / "other")
    write_jsonl(tmp_path / "other" / "data" / "forget01.jsonl", rows("forget01", 2))
    assert main(arguments(tofu, out, data=tmp_path / "other" / "data")) == 2
    assert "what these name has changed since then: forget_data" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failed_cell_stops_no_other_and_is_shown_as_failed(tofu, tmp_path, capsys):
    out = tmp_path / "bench"
    # The tiny model has no layer 7, rmu's default, so the run is refused when the model is loaded.
    argv = arguments(tofu, out, methods=("lora+rmu", "lora+gd"), processes=2)
    assert main(argv) == 1
    shown = capsys.readouterr().out
    assert "lora+rmu seed 0: FAILED (exit code 2" in shown
    assert "lora+gd seed 0: done" in shown
    assert sum(line.startswith(("cell 1 of 2 starts", "cell 2 of 2 starts")) for line in shown.splitlines()) == 2
    assert "0, 1 failed" in (out / "results.md").read_text()
    assert "layer" in (out / "cells/forget01/lora+rmu/seed-0/failed.txt").read_text()

    # The failed cell is run again with corrected settings.
    settings = tmp_path / "settings.yaml"
    settings.write_text("lora+rmu: {loss_kwargs: {layer: 1}}\n")
    assert main([*argv, "--settings", str(settings)]) == 0
    assert ", 1 failed" not in (out / "results.md").read_text()


@pytest.mark.slow
def test_labels_compare_settings_of_one_method_in_one_grid(tofu, tmp_path):
    out, settings = tmp_path / "bench", tmp_path / "settings.yaml"
    settings.write_text("pissa+ihl@rank=1: {r: 1}\n")
    methods = ("pissa+ihl", "pissa+ihl@rank=1")
    assert main(arguments(tofu, out, "--settings", str(settings), methods=methods)) == 0
    cells = out / "cells" / "forget01"
    ranks = [read_yaml(cells / method / "seed-0/run/config.yaml")["r"] for method in methods]
    assert ranks == [2, 1]
    with (out / "results.csv").open() as file:
        found = {row["method"]: shlex.split(row["command"]) for row in csv.DictReader(file)}
    assert list(found) == ["original", *methods]
    command = found["pissa+ihl@rank=1"]
    assert command[command.index("--methods") + 1] == "pissa+ihl@rank=1"
    assert command[command.index("--r") + 1] == "1"


@pytest.mark.parametrize("method", ["pissa+ihl@", "pissa+ihl@a/b", "pissa+ihl@a@b", "pissa+ihl@[a]"])
def test_a_label_that_cannot_be_part_of_a_folder_s_name_is_refused(tofu, tmp_path, capsys, method):
    assert main(arguments(tofu, tmp_path / "bench", methods=(method,))) == 2
    assert f"methods={method!r}: a label has letters" in capsys.readouterr().err
    assert not (tmp_path / "bench").exists()


OWN = """
from statistics import mean

from unlora.benchmarks import Benchmark, Measured, Reading, register_benchmark
from unlora.losses import Loss, register_loss


def capped(logp, cap=4.0):
    return logp.clamp(min=-cap).mean()


class Lengths(Benchmark):
    name = "lengths"

    def request(self, options, split, seed):
        data = {f"{name}_data": options.data + f"/{own}.jsonl" for name, own in SETS.items()}
        return {**super().request(options, split, seed), **data}

    def evaluation(self, options, split, seed):
        return {"data": options.data + f"/{SETS['forget']}.jsonl"}

    def score(self, model, text_format, data, settings):
        return {"lengths": [len(row["answer"]) for row in data], "active": hasattr(model, "peft_config")}

    def read(self, log, retrained=None):
        return Reading({"length": Measured(mean(log["lengths"])), "active": Measured(float(log["active"]))})


SETS = {"forget": "forget01", "retain": "retain99"}
register_loss("capped", Loss(capped, "mean_t max(log p(y_t), −c)", "ours"))
register_benchmark(Lengths())
"""


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
def test_an_own_loss_and_an_own_benchmark_work_in_the_processes_of_a_bench(tofu, tmp_path, capsys):
    plugin, out = tmp_path / "own.py", tmp_path / "bench"
    plugin.write_text(OWN)
    argv = arguments(tofu, out, "--plugin", str(plugin), methods=("lora+capped",), splits="forget")
    argv[1] = "lengths"
    assert main(argv) == 0
    assert "forget lora+capped seed 0: done" in capsys.readouterr().out
    values = {(row["method"], row["metric"]): row for row in csv.DictReader((out / "results.csv").open())}
    assert float(values["lora+capped", "length"]["mean"]) == pytest.approx(len("Ada 0 does."))
    assert [float(values[method, "active"]["mean"]) for method in ("original", "lora+capped")] == [0.0, 1.0]
    assert values["lora+capped", "length"]["command"].endswith(f"--plugin {plugin}")
    run = out / "cells/forget/lora+capped/seed-0/run"
    [recorded] = json.loads((run / "record.json").read_text())["plugins"]
    assert recorded["file"] == "own.py"
    assert recorded["sha256"] == hashlib.sha256(plugin.read_bytes()).hexdigest()

    # A finished cell is refused if the code of the plugin has changed since then.
    plugins.LOADED.clear()  # as in a new process
    del BENCHMARKS["lengths"], LOSSES["capped"]
    plugin.write_text(OWN.replace("cap=4.0", "cap=5.0"))
    assert main(argv) == 2
    assert "it is finished, with other settings than these: plugin" in capsys.readouterr().err


@pytest.mark.usefixtures("registries")
def test_what_the_program_itself_registered_is_refused_before_a_process_would_not_know_it(tofu, tmp_path, capsys):
    register_loss("capped", Loss(lambda logp: logp.mean(), "", "ours"))
    assert main(arguments(tofu, tmp_path / "bench", methods=("lora+capped",))) == 2
    shown = capsys.readouterr().err
    assert "loss='capped': the program itself has registered it" in shown
    assert "--plugin FILE.py" in shown
    assert not (tmp_path / "bench").exists()


@pytest.mark.slow
def test_cells_run_on_a_ray_cluster_and_fail_alone_there_too(tofu, tmp_path, capsys):
    ray = pytest.importorskip("ray", reason="needs unlora[ray]")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        argv = arguments(tofu, tmp_path / "bench", methods=("lora+rmu", "lora+gd"), processes=2, executor="ray")
        assert main(argv) == 1
        assert ray.is_initialized()  # the user's own cluster is not shut down
    finally:
        ray.shutdown()
    shown = capsys.readouterr().out
    assert "lora+rmu seed 0: FAILED (exit code 2" in shown
    assert "lora+gd seed 0: done" in shown
    assert "layer" in (tmp_path / "bench/cells/forget01/lora+rmu/seed-0/failed.txt").read_text()


def test_ray_is_asked_for_where_it_is_missing(tofu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unlora.settings.commands.find_spec", lambda name: None)
    assert main(arguments(tofu, tmp_path / "bench", executor="ray")) == 2
    assert "pip install 'unlora[ray]'" in capsys.readouterr().err


def test_the_command_of_a_row_has_all_seeds_and_the_flags_of_its_method():
    given = ["--retrained", "forget01=log.json", "--seeds", "2", "--first_seed", "3", "--config", "preset", "--r", "4"]
    args, rest = fill(read((BenchConfig,), ["tofu", "--output_dir", "old", *given], "bench", forwards=True))
    values = {**forwarded(rest), "loss_kwargs": {"beta": 1}, "target_modules": ["a", "b"], "lora_alpha": None}
    command = command_of(args, "vila+ihl", "forget01", values)
    assert shlex.split(command) == [
        *("unlora", "bench", "tofu", "--methods", "vila+ihl", "--splits", "forget01", "--seeds", "2"),
        *("--first_seed", "3", "--output_dir", "NEW_FOLDER", "--retrained", "forget01=log.json"),
        *("--config", "preset", "--r", "4", "--loss_kwargs", '{"beta": 1}', "--target_modules", "a", "b"),
    ]


REFUSED = {
    "no such benchmark": (["bench", "tofuu", "--output_dir", "x"], "did you mean 'tofu'"),
    "half a method": (["--methods", "vila"], "methods='vila'.*write it as vila\\+ihl"),
    "no such loss": (["--methods", "vila+ihll"], "did you mean 'ihl'"),
    "no such split": (["--splits", "forget02"], "splits='forget02'.*forget01"),
    "no seeds": (["--seeds", "0"], "seeds=0: nothing would run"),
    "no model": (["--model_name_or_path", ""], "the benchmark needs it.*fine-tuned on TOFU"),
    "no such executor": (["--executor", "rey"], "executor='rey'.*did you mean 'ray'"),
    "a flag that does not exist": (["--lerning_rate", "1"], "lerning_rate.*did you mean 'learning_rate'"),
    "a retrained model of no split": (["--retrained", "model"], "each split has a retrained model of its own"),
    "a retrained model of another split": (["--retrained", "forget02=m"], "retrained='forget02': unknown name"),
    "no processes": (["--num_processes", "0"], "num_processes=0: nothing would run"),
    "no such preset": (["--config", "vila-phi"], "neither a file nor the name of a published configuration"),
    "a missing log": (["--retrained", "forget01=no.json"], "retrained='no.json': no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_any_cell_runs(tofu, tmp_path, capsys, case):
    import re

    more, message = REFUSED[case]
    argv = more if more[0] == "bench" else [*arguments(tofu, tmp_path / "bench"), *more]
    assert main(argv) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not stamps(tmp_path)


@pytest.mark.parametrize("name", ["persona", "muse-mini", "wmdp-mini"])
def test_built_in_benchmarks_take_no_data_of_the_user_s(tmp_path, capsys, name):
    assert main(["bench", name, "--output_dir", str(tmp_path / "b"), "--data", "x"]) == 2
    assert "a built-in benchmark makes its own" in capsys.readouterr().err


@pytest.mark.slow
def test_a_retrained_model_is_evaluated_once_and_gives_a_forget_quality(tofu, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(type(BENCHMARKS["tofu"]), "tuned", {"gd": {"max_grad_norm": 0.5}})
    out, preset = tmp_path / "bench", tmp_path / "preset.yaml"
    preset.write_text("{lora_alpha: 3, r: 5, init: vila, forget_name: other}")
    more = ["--retrained", f"forget01={tofu / 'model'}", "--config", str(preset)]
    argv = arguments(tofu, out, *more, methods=("lora+gd",), learning_rate=1e-9)
    assert main([*argv, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["rows"]  # stdout has nothing that the evaluation prints
    assert len(list((out / "logs").glob("*.json"))) == 1  # both are the same model here
    table, _, ranking = (out / "results.md").read_text().partition("## Ranking")
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| forget")]
    assert [row[1] for row in rows] == ["original", "retrained", "lora+gd"]
    assert ranking.count("| forget01 | ") == len(rows)
    assert rows[2][3] == "**0.000**"  # a learning rate of 1e-9 changes nothing: p = 1, log₁₀ p = 0
    # The preset only sets what neither the benchmark, the method nor a flag sets.
    used = yaml.safe_load((out / "cells/forget01/lora+gd/seed-0/run/config.yaml").read_text())
    assert {name: used[name] for name in ("lora_alpha", "r", "init", "forget_name")} == {
        "lora_alpha": 3,
        "r": 2,
        "init": "lora",
        "forget_name": "forget01",
    }
    assert used["max_grad_norm"] == 0.5  # tuned for this loss on this benchmark


@pytest.mark.slow
def test_a_retrained_model_may_come_later_and_may_change(tofu, tmp_path, capfd):
    """Finished cells are compared with the new retrained model, but not run again."""
    retrained = shutil.copytree(tofu / "model", tmp_path / "retrained")
    out = tmp_path / "bench"
    argv = arguments(tofu, out, methods=["lora+gd"], r=1)
    assert main(argv) == 0
    first = capfd.readouterr().out
    [note] = [line for line in (out / "results.md").read_text().splitlines() if line.startswith("log10 forget quality")]
    assert note.startswith("log10 forget quality: not available; ")
    assert "--retrained" in note
    assert first.count("--retrained") == 1
    lines = list(csv.DictReader((out / "results.csv").open()))
    reasons = {row["not available"] for row in lines if row["metric"] == "log10 forget quality"}
    assert reasons == {note.partition("; ")[2].removesuffix(".")}
    assert main([*argv, "--json"]) == 0
    [original, method] = json.loads(capfd.readouterr().out)["rows"]
    assert list(method["values"]["log10 forget quality"]) == ["not available"]
    assert method["values"]["forget probability"] != original["values"]["forget probability"]

    before, qualities = stamps(out), []
    for seed in (None, 1):
        if seed is not None:  # other weights in the same folder
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(tiny_config("llama", len(make_tokenizer()))).save_pretrained(retrained)
        assert main([*argv, "--retrained", f"forget01={retrained}", "--json"]) == 0
        rows = {row["method"]: row["values"] for row in json.loads(capfd.readouterr().out)["rows"]}
        qualities.append(rows["lora+gd"]["log10 forget quality"])
        assert rows["retrained"]["log10 forget quality"] == [0.0]
        assert "log₁₀ forget quality" in (out / "compare.html").read_text()  # an axis of the forgetting-utility plane
    assert qualities[0] != qualities[1]
    assert stamps(out) == before
    assert len(list((out / "logs").glob("*.json"))) == 3

    # A changed original model is refused instead, because the finished cell was made from another model.
    model = shutil.copytree(retrained, tmp_path / "other")
    other = arguments(tofu, out, methods=["lora+gd"], r=1, model_name_or_path=model)
    assert main(other) == 2
    assert "changed since then: model_name_or_path" in capfd.readouterr().err


def test_flags_are_forwarded_as_written():
    assert forwarded(["--r", "4", "--bf16", "--target_modules", "q_proj", "k_proj", '--loss_kwargs={"beta": 1}']) == {
        "r": "4",
        "bf16": "true",
        "target_modules": ["q_proj", "k_proj"],
        "loss_kwargs": '{"beta": 1}',
    }
    with pytest.raises(InputError, match="no flag takes it"):
        forwarded(["4"])


def result(method, quality, failed=0):
    values = {"quality": quality, "leak": [-value for value in quality]}
    return Results(method, "s", values, failed=failed, command=f"run {method}")


def toy(direction="high"):
    """Return a benchmark that knows which direction is better for one column, "quality"."""
    benchmark = Benchmark()
    benchmark.metrics = {"quality": Metric("quality", direction)}
    return benchmark


def test_tables_have_mean_and_standard_error_and_the_best_in_bold():
    """The values −1 and −3 have the mean −2 and the standard error √2/√2 = 1."""
    table = [result("original", [0.0]), result("a", [-1.0, -3.0]), result("b", [-4.0], failed=1), result("c", [])]
    assert best(table, toy()) == {("s", "a", "quality")}  # the original model is not a method
    text = markdown(table, toy())
    assert "| s | a | 2 | **-2.000 ± 1.000** | 2.000 ± 1.000 |" in text
    assert "| s | b | 1, 1 failed | -4.000 | 4.000 |" in text
    assert "| s | c | 0 | - | - |" in text
    assert "run b  # s, b" in text
    [line] = [line for line in to_csv(table).splitlines() if line.startswith("s,a,quality")]
    assert line == "s,a,quality,-2.0,1.0,2,0,run a,"


seeds = st.lists(st.integers(-300, 300).map(lambda value: value / 100), max_size=5)


@given(st.lists(seeds, min_size=1, max_size=4), st.sampled_from(["high", "low", "zero"]))
def test_means_errors_and_the_best_of_any_results(values, direction):
    """Means and standard errors equal numpy's.

    The best result depends neither on the order of the rows nor on the rows of the original and retrained models.
    """
    table = [result(f"m{place}", of_seeds) for place, of_seeds in enumerate(values)]
    rows = {row["method"]: row for row in csv.DictReader(to_csv(table).splitlines()) if row["metric"] == "quality"}
    for row, of_seeds in zip(table, values, strict=True):
        written, text = rows[row.method], row.text("quality")
        assert written["seeds"] == str(len(of_seeds))
        if not of_seeds:
            assert (written["mean"], text) == ("", "-")
            continue
        assert float(written["mean"]) == pytest.approx(np.mean(of_seeds))
        assert text.startswith(f"{float(written['mean']):.3f}")
        if len(of_seeds) == 1:
            assert written["standard_error"] == ""
            assert "±" not in text
        else:
            error = np.std(of_seeds, ddof=1) / len(of_seeds) ** 0.5
            assert float(written["standard_error"]) == pytest.approx(error, abs=1e-12)
            assert text.endswith(f"± {float(written['standard_error']):.3f}")
    found = best(table, toy(direction))
    cost = {"high": lambda value: -value, "low": lambda value: value, "zero": abs}[direction]
    costs = {row.method: cost(np.mean(row.values["quality"])) for row in table if row.values["quality"]}
    assert len(found) >= bool(costs)
    assert all(costs[method] == pytest.approx(min(costs.values())) for _, method, _ in found)
    models = [result("original", [0.0]), result("retrained", [9.0, -9.0])]
    assert best([*models, *reversed(table)], toy(direction)) == found


@pytest.mark.parametrize(("direction", "winner"), [("high", "c"), ("low", "a"), ("zero", "b")])
def test_what_is_best_depends_on_the_column(direction, winner):
    table = [result("a", [-3.0]), result("b", [-1.0]), result("c", [2.0])]
    assert best(table, toy(direction)) == {("s", winner, "quality")}


def test_a_grid_has_every_combination_with_seeds_outermost():
    cells = grid(["vila+ihl", "lora+gd"], ["forget10", "forget01"], range(2), Path("out"), BENCHMARKS["tofu"])
    assert [(cell.seed, cell.split, cell.method) for cell in cells[:3]] == [
        (0, "forget10", "vila+ihl"),
        (0, "forget10", "lora+gd"),
        (0, "forget01", "vila+ihl"),
    ]
    assert len({cell.folder for cell in cells}) == len(cells) == 8


def test_a_request_in_sequence_brings_the_earlier_ones_and_waits_for_them():
    cells = grid(["vila+ihl"], ["sust_3", "scal_2"], range(2), Path("out"), BENCHMARKS["muse"])
    assert [cell.split for cell in cells if cell.seed == 0] == ["sust_1", "sust_2", "sust_3", "scal_2"]
    third = cells[2]
    assert (third.on, third.on.on) == (cells[1], cells[0])
    parts = [[(cell.split, cell.seed) for cell in part] for part in waves(cells)]
    assert parts == [
        [("sust_1", 0), ("scal_2", 0), ("sust_1", 1), ("scal_2", 1)],
        [("sust_2", 0), ("sust_2", 1)],
        [("sust_3", 0), ("sust_3", 1)],
    ]


FINISHED = {"settings": {}, "contents": {}, "stages": {"report.html": "its hash"}}


def test_an_unfinished_run_is_no_result(tmp_path):
    cell = Cell("lora+gd", "s", 0, tmp_path)
    cell.prepare({"r": 1})
    assert not cell.finished
    write_json(tmp_path / "run" / "eval_original.json", {})
    cell.prepare({"r": 2})
    assert not (tmp_path / "run").exists()
    write_json(tmp_path / "run" / "metrics.json", {"unlearned": {}})
    assert not cell.finished  # no stage is recorded as finished
    write_json(tmp_path / "run" / "stages.json", FINISHED)
    assert cell.finished


def test_a_run_that_was_not_measured_is_not_repeated(tmp_path):
    cell = Cell("lora+gd", "s", 0, tmp_path, "muse")
    cell.prepare({"r": 1}, {"data": "x"})
    assert [command[0] for command in cell.commands] == ["unlearn", "evaluate"]
    write_json(tmp_path / "run" / "stages.json", FINISHED)
    cell.prepare({"r": 1}, {"data": "y"})  # another evaluation of the same run
    assert [command[0] for command in cell.commands] == ["evaluate"]
    with pytest.raises(InputError, match="finished, with other settings"):
        cell.prepare({"r": 2}, {"data": "y"})
    write_json(tmp_path / "scores.json", {})
    assert cell.finished
    with pytest.raises(InputError, match="finished, with other settings"):
        cell.prepare({"r": 1}, {"data": "z"})


def test_progress_tells_the_time_that_is_left():
    lines = []
    progress, first, second = Progress(3, lines.append), *(Cell("lora+gd", "s", seed, Path("x")) for seed in (0, 1))
    progress.start(first)
    progress.since -= 120  # as if the first of three cells had taken two minutes
    progress.end(first, "done")
    progress.start(second)
    assert lines == [
        "cell 1 of 3 starts: s lora+gd seed 0",
        "1/3 s lora+gd seed 0: done; 4 min left",
        "cell 2 of 3 starts: s lora+gd seed 1; 4 min left",
    ]


def test_progress_tells_which_cells_run_besides_the_one_that_ended():
    lines = []
    progress, *cells = Progress(3, lines.append), *(Cell("lora+gd", "s", seed, Path("x")) for seed in range(3))
    for cell in cells[:2]:
        progress.start(cell)
    progress.since = time.monotonic()
    progress.end(cells[1], "done")
    progress.end(cells[2], "FAILED (it continues from a cell that failed)")  # it never started
    assert [line.partition("running: ")[2] for line in lines[2:]] == ["s lora+gd seed 0"] * 2


@pytest.mark.slow
def test_several_processes_share_the_unlearning_of_a_cell_through_accelerate(tofu, tmp_path):
    assert launcher("unlearn", 1) == launcher("evaluate", 2) == [sys.executable, "-m", "unlora"]
    assert main(arguments(tofu, tmp_path / "bench", methods=["lora+gd"], num_processes=2)) == 0
    record = json.loads((tmp_path / "bench/cells/forget01/lora+gd/seed-0/run/record.json").read_text())
    assert record["hardware"]["processes"] == 2


def test_gpus_are_dealt_to_the_cells_that_run_at_a_time(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert [_environment(number, 3, 1)["CUDA_VISIBLE_DEVICES"] for number in range(3)] == ["3", "5", "6"]
    assert [_environment(number, 2, 2)["CUDA_VISIBLE_DEVICES"] for number in range(2)] == ["3,5", "6,7"]


@pytest.mark.slow
def test_an_importance_is_measured_once_for_all_losses(tofu, tmp_path):
    assert main(arguments(tofu, tmp_path / "bench", methods=("vila+ihl", "vila+gd"))) == 0
    first, second = (tmp_path / "bench/cells/forget01" / method / "seed-0/run" for method in ("vila+ihl", "vila+gd"))
    assert not (second / "importance.safetensors").exists()
    config = yaml.safe_load((second / "config.yaml").read_text())
    assert config["importance_file"] == str(first / "importance.safetensors")


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"loss": "gd", "learning_rate": 1.0, "max_steps": 3, "original_log": "log.json"}, True),
        ({"r": 4}, False),
        ({"importance_seed": 1}, False),
        ({"forget_name": "other"}, False),
        ({"dtype": "bfloat16"}, False),
    ],
)
def test_cells_share_an_importance_if_nothing_that_it_depends_on_differs(tmp_path, changes, shared):
    settings = {"init": "vila", "loss": "ihl", "r": 8, "importance_seed": 0, "forget_name": "forget"}
    cells = grid(["vila+ihl", "vila+gd", "fila+gd"], ["forget10"], [0, 1], tmp_path, BENCHMARKS["tofu"])
    for cell in cells:
        cell.prepare({**settings, **(changes if cell.method == "vila+gd" else {})})
    assert [shared_importance(cell) for cell in cells] == [None] * 6
    first = cells[0].folder / "run" / "importance.safetensors"
    first.parent.mkdir()
    first.touch()
    assert [shared_importance(cell) for cell in cells] == [None, first if shared else None, None, None, None, None]


def test_settings_of_one_method_share_an_importance(tmp_path):
    cells = grid(["vila+ihl", "vila+ihl@fast", "fila+ihl@vila"], ["forget10"], [0], tmp_path, BENCHMARKS["tofu"])
    for cell in cells:
        cell.prepare({"init": cell.method[:4], "learning_rate": 1e-2 if "@" in cell.method else 1e-3})
    first = cells[0].folder / "run" / "importance.safetensors"
    first.parent.mkdir()
    first.touch()
    assert [shared_importance(cell) for cell in cells] == [None, first, None]
