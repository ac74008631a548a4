"""Plugins are loaded once and their errors name the file and line. Only the user can name a plugin."""

from __future__ import annotations

import hashlib
import sys

import pytest

from unlora.cli import main
from unlora.cli.arguments import plugin_paths
from unlora.common import plugins
from unlora.common.errors import InputError
from unlora.losses import LOSSES

LOSS = """
from unlora.losses import Loss, register_loss


def capped(logp, cap=2.0):
    return logp.clamp(min=-cap).mean()


register_loss("capped", Loss(capped, "mean_t max(log p(y_t), −c)", "ours"))
"""

pytestmark = pytest.mark.usefixtures("registries")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a file to the current folder and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def file(text, name="own.py"):
        (tmp_path / name).write_text(text)
        return name

    return file


def test_the_flag_may_be_repeated_and_stand_anywhere():
    argv = ["--plugin", "a.py", "persona", "--seeds", "1", "--plugin=b.py"]
    assert plugin_paths(argv) == (["a.py", "b.py"], ["persona", "--seeds", "1"])
    for wrong in (["--plugin"], ["--plugin", "--seeds", "1"], ["--plugin="]):
        with pytest.raises(InputError, match=r"no file is named.*--plugin FILE.py"):
            plugin_paths(wrong)


def test_a_plugin_is_loaded_once_and_known_to_every_command(write, capsys):
    plugin = write(LOSS)
    for _ in range(2):
        assert main(["ls", "losses", "--markdown", "--plugin", plugin]) == 0
        assert "| `capped` | mean_t max(log p(y_t), −c) | cap = 2.0 |" in capsys.readouterr().out
    needed = "--model_name_or_path m --forget_data f --retain_data r --output_dir o --loss capped"
    assert main(["validate", *needed.split(), "--plugin", f"./{plugin}"]) == 0
    assert plugins.flags() == ["--plugin", plugin]


def test_the_hashes_are_those_of_the_file_and_of_a_module_next_to_it(write, tmp_path):
    write("CAP = 3.0\n", "caps_beside.py")
    plugins.load_plugins(
        [write(LOSS.replace("cap=2.0", "cap=CAP").replace("\nfrom", "\nfrom caps_beside import CAP\nfrom", 1))]
    )
    assert LOSSES["capped"].settings == {"cap": 3.0}
    names = {part["file"]: part["sha256"] for part in plugins.described()}
    expected = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("own.py", "caps_beside.py")
    }
    assert names == expected
    assert plugins.hashes_of({"loss": "capped", "initialiser": "vila"}) == sorted(expected.values())
    sys.modules.pop("caps_beside")


def test_a_module_that_is_created_in_memory_is_not_a_file_of_the_plugin(write):
    """`torch._classes` is such a module: importing torch creates it, and its file name is `_classes.py`."""
    made = "import sys, types\nmade = sys.modules['made_in_memory'] = types.ModuleType('made_in_memory')\n"
    plugins.load_plugins([write(f"{made}made.__file__ = '_made.py'\n")])
    assert [part["file"] for part in plugins.described()] == ["own.py"]
    sys.modules.pop("made_in_memory")


def test_a_changed_file_is_not_loaded_again(write):
    plugins.load_plugins([write(LOSS)])
    with pytest.raises(InputError, match="it has changed since it was loaded"):
        plugins.load_plugins([write(LOSS.replace("2.0", "3.0"))])


FAULTS = {
    "no file": (None, "plugin='own.py': it cannot be read (No such file or directory)"),
    "syntax": ("x = 1\ndef f(:\n", "plugin='own.py': own.py, line 2: SyntaxError: invalid syntax"),
    "a wrong name": ("\n\nregister_loss('a', 1)\n", "own.py, line 3: NameError: name 'register_loss' is not defined"),
    "in a function": (
        "def f():\n    return 1 / 0\n\nf()\n",
        "own.py, line 2, in f: ZeroDivisionError: division by zero",
    ),
    "a missing module": ("import no_such_module\n", "own.py, line 1: ModuleNotFoundError: No module named 'no_such"),
    "a taken name": (
        LOSS.replace('"capped"', '"ihl"'),
        "own.py, line 9: name='ihl': another loss has this name. Fix: choose another name.\n",
    ),
    "a program": (
        "import sys\nfrom unlora.cli import main\nsys.exit(main(['ls', 'losses']))\n",
        "it ends the program. Fix: move code that runs as a program under `if __name__ == '__main__':`",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_errors_while_a_plugin_is_loaded_name_its_file_and_line(write, capsys, case):
    text, message = FAULTS[case]
    if text is not None:
        write(text)
    assert main(["ls", "losses", "--plugin", "own.py"]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_plugin_that_fails_does_not_count_as_loaded(write):
    write("1 / 0\n")
    for _ in range(2):
        with pytest.raises(InputError, match="ZeroDivisionError"):
            plugins.load_plugins(["own.py"])
    plugins.load_plugins([write(LOSS)])
    assert "capped" in LOSSES


def test_a_file_that_is_not_python_is_refused(write):
    with pytest.raises(InputError, match=r"it is not a Python file. Fix: name a file that ends in .py"):
        plugins.load_plugins([write("x = 1", "own.txt")])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return logp.no_such_thing()", "own.py, line 6, in capped: AttributeError: 'Tensor' object has no attribute"),
        ("return logp", "loss='capped': it returned a tensor of shape ("),
    ],
)
def test_errors_while_a_plugin_is_used_have_no_traceback(write, model_folder, data, capsys, body, message):
    plugin = write(LOSS.replace("return logp.clamp(min=-cap).mean()", body))
    sets = ["--forget_data", str(data / "forget.jsonl"), "--retain_data", str(data / "retain.jsonl")]
    own = ["--plugin", plugin, "--loss", "capped", "--init", "lora", "--max_steps", "1", "--use_cpu"]
    out = ["--output_dir", "run", "--max_new_tokens", "4", "--disable_tqdm", "true"]
    assert main(["unlearn", "--model_name_or_path", str(model_folder), *sets, *own, *out]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_configuration_cannot_name_a_plugin(write, capsys):
    config = write("plugin: own.py\nloss: ihl\n", "run.yaml")
    write("raise SystemExit\n")
    assert main(["validate", config]) == 2
    assert "a configuration may come from somebody else, and a plugin is code" in capsys.readouterr().err


def test_an_unknown_choice_says_how_to_add_a_plugin(write, capsys):
    needed = "--model_name_or_path m --forget_data f --retain_data r --output_dir o --loss capped"
    assert main(["validate", *needed.split()]) == 2
    assert "for one of your own, add --plugin FILE.py" in capsys.readouterr().err


def test_an_installed_package_is_found_by_its_entry_point(write, tmp_path, monkeypatch, capsys):
    write(LOSS.replace('register_loss("', 'def add():\n    register_loss("'), "installed_losses.py")
    info = tmp_path / "installed_losses-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-losses\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[unlora.plugins]\ncapping = installed_losses:add\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["ls", "losses", "--markdown"]) == 0
    assert "| `capped` |" in capsys.readouterr().out
    [recorded] = plugins.described()
    assert recorded["plugin"] == "capping (installed-losses 1.5)"
    assert recorded["file"] == "installed_losses.py"
    assert plugins.flags() == []  # other processes find installed plugins without a flag
    sys.modules.pop("installed_losses")
