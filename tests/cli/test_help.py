"""Every command has help with an example. Help and errors in the arguments appear before torch is loaded."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys

import pytest

from unlora.cli import COMMANDS, main
from unlora.cli.parser import make_parser
from unlora.settings import FinetuneSettings, UnlearnSettings
from unlora.training.config import UnlearnConfig
from unlora.training.finetune import FinetuneConfig

PROBE = """
import sys
from unlora.cli import COMMANDS, main
for command in COMMANDS:
    assert main([command, "--help"]) == 0, command
    loaded = {"torch", "transformers", "datasets", "numpy", "rich"} & set(sys.modules)
    assert not loaded, (command, loaded)
assert main(["--help"]) == 0
"""

UNKNOWN = """
import sys
from unlora.cli import COMMANDS, main
for command in COMMANDS:
    rest = ["persona", "--output_dir", "bench"] if command == "bench" else []
    assert main([command, *rest, "--lerning_rate", "3"]) == 2, command
    loaded = {"torch", "transformers", "datasets", "rich"} & set(sys.modules)
    assert not loaded, (command, loaded)
"""

NO_FILE = """
import sys
from unlora.cli import main
bench = ["bench", "persona", "--methods", "vila+ihl", "--output_dir", "bench"]
wrong = [[*bench, "--config", "nothing"], [*bench, "--settings", "nothing"]]
wrong += [[command, "nothing"] for command in ("attack", "chat", "report", "verify")]
wrong += [["evaluate", "--log", "nothing"], ["evaluate", "--log", "x" * 5000], ["report", "x" * 5000]]
for argv in (*wrong, ["export", "nothing", "--output_dir", "there"], ["unlearn", "--config", "nothing"]):
    assert main(argv) == 2, argv
    assert "torch" not in sys.modules, argv
"""


TYPING_ERRORS = """
import sys
from pathlib import Path
from unlora.cli import main
needed = "--model_name_or_path m --forget_data f.jsonl --retain_data r.jsonl --output_dir o".split()
bench = ["bench", "persona", "--output_dir", "b"]
Path("wrong.yaml").write_text("loss: idkk")
Path("settings.yaml").write_text("vila+ihl: {retain_loss: nl}")
wrong = {
    "lora": ["importance", *needed, "--init", "lorra"],
    "vila": ["unlearn", *needed, "--init", "villa"],
    "distil": ["validate", *needed, "--loss", "distill"],
    "nll": ["unlearn", *needed, "--retain_loss", "nl"],
    "changed_names": ["unlearn", *needed, "--teacher", "changed_name"],
    "idk": ["unlearn", *needed, "--config", "wrong.yaml"],
    "simnpo": [*bench, "--methods", "vila+ihl", "lora+simpno"],
    "fila": [*bench, "--methods", "filla+ihl"],
    "soft_kl": [*bench, "--retain_loss", "soft-kl"],
    "nll ": [*bench, "--methods", "vila+ihl", "--settings", "settings.yaml"],
    "persona": ["bench", "personna", "--output_dir", "b"],
    "ray": [*bench, "--executor", "rai"],
    "muse": ["evaluate", "--benchmark", "muze", "--log", "log.json"],
    "wmdp": ["evaluate", "--benchmark", "wmpd", "--model_name_or_path", "m", "--data", "d"],
    "relearn": ["attack", ".", "--attacks", "relern"],
    "losses": ["ls", "lossess"],
    "vila-phi-1.5-forget01-npo": ["unlearn", "--config", "vila-phi-1.5-forget01-nop"],
}
for nearest, argv in wrong.items():
    print(f"did you mean {nearest.strip()!r}?", flush=True)
    assert main(argv) == 2, argv
    assert "torch" not in sys.modules, argv
"""


def module(command):
    return importlib.import_module(f"unlora.cli.{command.replace('-', '_')}")


def test_no_help_loads_torch():
    subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)


def test_a_name_that_does_not_exist_is_refused_with_the_nearest_one_before_torch_is_loaded(tmp_path):
    probe = [sys.executable, "-c", TYPING_ERRORS]
    done = subprocess.run(probe, check=True, capture_output=True, text=True, cwd=tmp_path)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for line, error in zip(done.stdout.splitlines(), errors, strict=True):
        assert line in error


def test_an_unknown_flag_is_reported_before_torch_is_loaded():
    done = subprocess.run([sys.executable, "-c", UNKNOWN], check=True, capture_output=True, text=True)
    assert done.stderr.count("error: flag='lerning_rate': unknown name.") == len(COMMANDS)


def test_a_file_or_run_that_is_not_there_is_reported_before_torch_is_loaded():
    done = subprocess.run([sys.executable, "-c", NO_FILE], check=True, capture_output=True, text=True)
    assert done.stderr.count("error: ") == 11
    assert done.stderr.count("='nothing': ") == 9
    assert done.stderr.count("xx': there is no such") == 2  # also if the name is too long for a file system


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_usage_output_flags_and_an_example_of_the_command(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: unlora {command}")
    assert all(flag in shown for flag in ("--quiet", "--json"))
    assert module(command).EXAMPLE.startswith(f"unlora {command} ")
    assert shown.rstrip().endswith(f"example:\n  {module(command).EXAMPLE}")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_the_settings_is_in_the_help(command, capsys):
    main([command, "--help_all"])
    shown = capsys.readouterr().out
    for kind in module(command).SETTINGS:
        for field in dataclasses.fields(kind):
            assert f"  {field.metadata['metavar'] if field.metadata.get('positional') else f'--{field.name}'}" in shown


@pytest.mark.parametrize("command", [name for name in COMMANDS if hasattr(module(name), "FIRST")])
def test_help_shows_ten_flags_in_named_groups_and_how_many_more_there_are(command, capsys):
    first = module(command).FIRST
    main([command, "--help"])
    shown = capsys.readouterr().out
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("  --")]
    wanted = [f"--{name}" for names in first.values() for name in names]
    assert len(wanted) == 10
    assert listed == ["--config", "--help_all", *wanted, "--quiet", "--json", "--plugin"]
    assert all(f"\n{group}:\n" in shown for group in first)
    fields = {field.name: field.metadata for kind in module(command).SETTINGS for field in dataclasses.fields(kind)}
    flags = {name for name, metadata in fields.items() if not metadata.get("positional")} | {"output_dir"} & set(wanted)
    assert f"list the other {len({f'--{name}' for name in flags} - set(wanted))} flags" in " ".join(shown.split())


def test_defaults_are_shown_as_they_are_written_on_the_command_line():
    @dataclasses.dataclass
    class Some:
        """Some settings."""

        flag: bool = dataclasses.field(default=True, metadata={"help": "A switch, 50% on."})
        sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 2], metadata={"help": "Sizes."})
        name: str | None = dataclasses.field(default=None, metadata={"help": "A name."})

    shown = make_parser("some", (Some,)).format_help()
    for line in ("Some settings:", "A switch, 50% on. (default: true)", "Sizes. (default: 1 2)", "A name.\n"):
        assert line in shown


@pytest.mark.parametrize("command", ["unlearn", "importance", "validate", "finetune"])
def test_the_training_arguments_are_listed_on_demand(command, capsys):
    assert main([command, "--help"]) == 0
    assert "--gradient_checkpointing" not in (shown := capsys.readouterr().out)
    assert "--help_all" in shown
    assert main([command, "--help_all"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("gradient_checkpointing", "model_name_or_path", "learning_rate"))


@pytest.mark.parametrize(("whole", "own"), [(UnlearnConfig, UnlearnSettings), (FinetuneConfig, FinetuneSettings)])
def test_the_settings_shown_are_those_that_count(whole, own):
    fields = {field.name: field for field in dataclasses.fields(whole)}
    for field in dataclasses.fields(own):
        assert fields[field.name].default == field.default
        assert fields[field.name].metadata == field.metadata


def test_the_usage_names_every_command_and_exit_code(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and text in shown for name, text in COMMANDS.items())
    assert "0 done, 1 training stopped or a check failed, 2 wrong input, 130 interrupted" in shown
