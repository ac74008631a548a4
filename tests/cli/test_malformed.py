"""Malformed flags and files of any origin are refused with one helpful message, and nothing is written."""

from __future__ import annotations

import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout, suppress

import pytest
import yaml
from experiments.malformed import BROKEN, ODD, WRONG, places, with_odd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.reported import attacks, make_run, membership, muse
from unlora.cli import finetune, main, unlearn
from unlora.common.errors import InputError
from unlora.report.compare import Group, Section, as_json
from unlora.report.read import read_run
from unlora.report.summary import summarise_run
from unlora.report.verdict import verdict
from unlora.settings.inherited import RANGES, field_choices, field_types
from unlora.settings.setting import annotations_of

SHORT = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
REQUIRED = {
    "unlearn": {"model_name_or_path": "m", "forget_data": "f", "retain_data": "r", "output_dir": "out"},
    "finetune": {"model_name_or_path": "m", "train_data": "f", "output_dir": "out"},
}
FIELDS = {
    name: {key: hint for kind in module.SETTINGS for key, hint in (field_types() | annotations_of(kind)).items()}
    for name, module in (("unlearn", unlearn), ("finetune", finetune))
}


def told(argv):
    """Run a command. Return its exit code and what it wrote to stderr, without the line on loading libraries."""
    errors = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        code = main([str(part) for part in argv])
    lines = errors.getvalue().split("\n")
    return code, "\n".join(line for line in lines if line != "loading libraries ...").strip()


def assert_refused(argv, folder, about=""):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, message = told(argv)
    assert code == 2, message
    assert message.startswith("error: "), message
    assert len(message) < 1000
    assert re.search(r"\w+=.*: .*\. Fix: .*\.", message), message
    assert about in message
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", message)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@st.composite
def wrong_settings(draw):
    command = draw(st.sampled_from(sorted(FIELDS)))
    names = sorted(name for name, hint in FIELDS[command].items() if hint in WRONG)
    name = draw(st.sampled_from(names))
    value = draw(st.sampled_from(WRONG[FIELDS[command][name]]))
    return command, name, value


@settings(SHORT, max_examples=150)
@given(case=wrong_settings())
def test_a_value_that_no_flag_of_its_type_takes_is_refused_by_name(tmp_path, case):
    command, name, value = case
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({**REQUIRED[command], name: value}), encoding="utf-8")
    if name == "max_retain_loss" and value == float("inf"):  # valid: it means that there is no limit
        return
    assert_refused([command, "--config", file], tmp_path, f"{name}=")


@pytest.mark.parametrize("name", sorted(RANGES))
@pytest.mark.parametrize("command", FIELDS)
def test_every_number_of_transformers_is_in_its_range_before_torch_is_loaded(tmp_path, name, command):
    flags = [part for flag, value in REQUIRED[command].items() for part in (f"--{flag}", value)]
    for value in ("-7", "1e12", "nan"):
        if not (value == "1e12" and field_types()[name] == "float"):
            assert_refused([command, *flags, f"--{name}", value], tmp_path, f"{name}=")


def test_every_number_of_transformers_has_a_range_and_every_enumeration_its_values():
    numbers = {name for name, hint in field_types().items() if {"int", "float"} & set(hint.split(" | "))}
    assert numbers <= RANGES.keys()
    assert {
        "optim",
        "lr_scheduler_type",
        "save_strategy",
        "logging_strategy",
        "eval_strategy",
    } <= field_choices().keys()
    assert "adamw_torch_fused" in field_choices()["optim"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("optim", "foo"), ("lr_scheduler_type", "steep"), ("save_strategy", "often"), ("loss_kwargs", "{")),
        *(("loss_kwargs", '{"beta": NaN}'), ("loss_kwargs", '{"beta": 1, "beta": 2}'), ("loss_kwargs", "[1]")),
        *(("logging_steps", "1.5"), ("label_smoothing_factor", "5"), ("max_steps", "9" * 20), ("seed", "-1")),
        *(("log_level", "x"), ("train_sampling_strategy", "x")),
        *(("optim", "adamw_apex_fused"), ("lr_scheduler_kwargs", "3"), ("r", "0"), ("dtype", "int8")),
        *((name, "x" * 5000) for name in ("output_dir", "model_name_or_path", "on", "plugin")),
        *(("output_dir", "a\0"), ("retain_data", "a\0"), ("target_modules", '["a\0"]'), ("forget_names", "a\0")),
    ],
)
def test_a_wrong_flag_is_refused_by_name(tmp_path, flag, value):
    flags = [part for name, given in REQUIRED["unlearn"].items() for part in (f"--{name}", given)]
    assert_refused(["unlearn", *flags, f"--{flag}", value], tmp_path, f"{flag}=")


@pytest.mark.parametrize(
    "argv",
    [
        *(["bench", "persona", "--output_dir", "OUT", *wrong] for wrong in (["--first_seed", "-5"], ["--seeds", "0"])),
        *(["bench", "persona", "--output_dir", "OUT", "--logging_steps", value] for value in ("0", "x")),
        ["bench", "persona", "--output_dir", "OUT", "--seeds", "1", "--first_seed", "99999999999999999999"],
        *(["quickstart", "--output_dir", "OUT", "--seed", value] for value in ("-1", "1.5", "9" * 30)),
        *(["attack", "OUT", *wrong] for wrong in (["--seeds", "-1"], ["--relearn_percent", "nan"], ["--r", "x"])),
        *(["chat", "OUT", *wrong] for wrong in (["--port", "-1"], ["--max_seconds", "inf"], ["--max_tokens", "0"])),
        *([command, "OUT"] for command in ("attack", "verify", "report", "compare")),
        *([command, "a\0"] for command in ("attack", "verify", "report", "compare", "unlearn", "validate", "chat")),
        *([command, "\ud800"] for command in ("attack", "verify", "report", "unlearn", "\ud800", "ls")),
        ["export", "OUT", "--output_dir", "OUT2"],
        ["evaluate", "--log", "OUT"],
        *(["evaluate", "--model_name_or_path", "m", *wrong] for wrong in (["--ds_size", "0"], ["--max_length", "x"])),
        ["evaluate", "--log", "OUT", "--benchmark", "x" * 5000],
        *([*command, "--output_dir", "x" * 5000] for command in (["quickstart"], ["bench", "persona"])),
        ["finetune", "--model_name_or_path", "x" * 5000, "--train_data", "OUT", "--output_dir", "OUT"],
        ["unlearn", "--config", "/"],
        ["unlearn", *["--nothing"] * 500],
    ],
)
def test_commands_refuse_what_they_cannot_do(tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    assert_refused(argv, tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("r", "it is not a whole number"),
        ("retain_weight", "it is not a number"),
        ("streaming", "it is neither true nor false"),
    ],
)
def test_a_value_of_the_wrong_type_has_the_same_reason_in_a_flag_and_in_a_file(tmp_path, name, reason):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({**REQUIRED["unlearn"], name: "some"}))
    assert_refused(["validate", file], tmp_path, f"{name}='some': {reason}. Fix")
    flags = [part for flag, given in REQUIRED["unlearn"].items() for part in (f"--{flag}", given)]
    assert_refused(["unlearn", *flags, f"--{name}", "some"], tmp_path, f"{name}='some': {reason}. Fix")


# YAML documents with arbitrary content, none of which is a valid settings file.
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates()
TREES = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ATOMS, inner, max_size=3))
TEXTS = st.builds(lambda tree: yaml.dump(tree).encode(errors="surrogatepass"), TREES)


@SHORT
@given(
    content=TEXTS | st.binary(max_size=60) | st.text(alphabet="[]{}&*!|>-:? \n\t#'\"a1", max_size=30).map(str.encode)
)
def test_files_that_are_no_settings_are_refused(tmp_path, content):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    assert_refused(["validate", file], tmp_path)


@st.composite
def damaged(draw, folder, names):
    """Draw the name of one of the files, and damaged content for it."""
    name = draw(st.sampled_from(sorted(names)))
    content = (folder / name).read_bytes()
    if draw(st.integers(0, 4)) == 0:
        return name, draw(st.sampled_from(BROKEN) | st.integers(0, len(content) - 1).map(lambda end: content[:end]))
    value = json.loads(content)
    path = draw(st.sampled_from(places(value)))
    return name, json.dumps(with_odd(value, path, draw(st.sampled_from(ODD)))).encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with results of every kind, all in JSON. So is config.yaml, because JSON is valid YAML."""
    files = {"membership": membership(), "attacks": attacks(), "scores_unlearned": muse(), "scores_original": muse()}
    files["record"] = {"command": "unlora", "data": {"forget": {"rows": 3}}, "versions": {"torch": "2"}}
    return make_run(tmp_path_factory.mktemp("made") / "run", **files)


@settings(SHORT, max_examples=50)
@given(data=st.data())
def test_a_run_that_is_read_is_refused_or_shown(tmp_path, made, data):
    names = [path.name for path in made.iterdir() if path.suffix in (".json", ".yaml")]
    name, content = data.draw(damaged(made, names))
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(made, run)
    (run / name).write_bytes(content)
    with suppress(InputError):
        found = read_run(run)
        json.dumps([summarise_run(found), as_json(Section("", [Group("run", [found])]))], default=str)
        assert verdict(found, summarise_run(found)).label


@settings(SHORT, max_examples=30)
@given(data=st.data())
def test_a_finished_run_is_refused_or_used(tmp_path, work, data):
    run, out = work / "run", tmp_path / "out"
    names = ["record.json", "adapter/adapter_config.json"]
    name, content = data.draw(damaged(run, names))
    before = (run / name).read_bytes()
    (run / name).write_bytes(content)
    for argv in (["verify", run], ["export", run, "--output_dir", out]):
        code, message = told(argv)
        assert code in (0, 1, 2)
        assert "traceback" not in message.lower(), message
        assert code != 2 or (len(message) < 1000 and "Fix: " in message)
        assert code != 2 or not out.exists()
        shutil.rmtree(out, ignore_errors=True)
    (run / name).write_bytes(before)


@settings(SHORT, max_examples=40)
@given(data=st.data())
def test_a_log_is_refused_or_read(tmp_path, made, data):
    name, content = data.draw(damaged(made, ["eval_unlearned.json", "scores_unlearned.json", "membership.json"]))
    (tmp_path / name).write_bytes(content)
    benchmark = ["--benchmark", "muse"] if name.startswith("scores") else []
    code, message = told(["evaluate", "--log", tmp_path / name, *benchmark])
    assert code in (0, 2)
    assert code == 0 or (len(message) < 1000 and "Fix: " in message)
