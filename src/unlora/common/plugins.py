"""Plugins: the user's own losses, initialisers, teachers and benchmarks, from a file or an installed package.

A plugin is a Python file given on the command line (`--plugin FILE.py`), or a module that an installed package declares
as an entry point of the group `unlora.plugins`. It registers its definitions while it is loaded. Configurations and run
folders cannot name plugins, because they may come from somebody else, and loading a plugin runs its code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from unlora.common.errors import InputError, Problem, unknown_name

T = TypeVar("T")
FLAG = "--plugin"
GROUP = "unlora.plugins"
_AS_A_PROGRAM = "move code that runs as a program under `if __name__ == '__main__':`"


@dataclass(frozen=True)
class Plugin:
    """A plugin that was loaded in this process.

    Args:
        name: its name in messages: the path of the file, or the entry point with its package and version.
        root: the file, or the folder of the package.
        is_file: whether it is a file from the command line, and not an entry point.
        files: {file: SHA-256} of its code: the file itself and the modules next to it that it imports.
    """

    name: str
    root: Path
    is_file: bool
    files: dict[Path, str] = field(default_factory=dict)

    def owns(self, path: str) -> bool:
        """Return whether the code of a file belongs to this plugin."""
        found = Path(path).resolve()
        return found in self.files or found == self.root or (not self.is_file and found.is_relative_to(self.root))


# The plugins of this process by file, or by entry point.
LOADED: dict[Any, Plugin] = {}
# (kind, name) of each registered entry -> the plugin that registered it, or None for the program itself.
ORIGINS: dict[tuple[str, str], Plugin | None] = {}
# Plugins that are being loaded, innermost last.
_loading: list[Plugin] = []


def register(kind: str, table: MutableMapping[str, T], name: str, entry: T) -> None:
    """Add an entry to one of the tables of choices, and record the plugin that it comes from.

    Args:
        kind: the kind of entry, such as "loss".
        table: the table of this kind.
        name: the name by which the user chooses the entry.
        entry: the entry itself.

    Raises:
        InputError: the name is taken, or contains characters that are not allowed in flags and folder names.
    """
    if name in table:
        raise InputError(Problem("name", name, f"another {kind} has this name", "choose another name"))
    if not re.fullmatch(r"\w[\w.-]*", name):
        fix = "use letters, digits, underscores, hyphens and dots"
        raise InputError(Problem("name", name, "it is part of flags and of the names of folders", fix))
    table[name] = entry
    ORIGINS[kind, name] = _loading[-1] if _loading else None


def unknown_choice(argument: str, value: object, options: Iterable[str]) -> Problem:
    """Return the problem of an unknown name in a table of choices. The fix mentions that plugins can add names."""
    problem = unknown_name(argument, value, options)
    return Problem(argument, value, problem.reason, f"{problem.fix}; for one of your own, add {FLAG} FILE.py")


def load_plugins(paths: Sequence[str] = ()) -> None:
    """Load the installed plugins and the given files, each once per process.

    Raises:
        InputError: a file cannot be read, or the code of a plugin fails.
    """
    if _loading:
        reason = "it starts a command of unlora while it is loaded"
        raise InputError(Problem("plugin", _loading[-1].name, reason, _AS_A_PROGRAM))
    for point in metadata.entry_points(group=GROUP):
        if point not in LOADED:
            _load_entry_point(point)
    for path in paths:
        _load_file(path)


def _load_file(path: str) -> None:
    """Import the file as a module with a unique name."""
    file = Path(path).resolve()
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
        raise InputError(Problem("plugin", path, reason, "name a Python file")) from error
    if file in LOADED:
        if LOADED[file].files[file] != digest:
            raise InputError(Problem("plugin", path, "it has changed since it was loaded", "start a new process"))
        return
    spec = importlib.util.spec_from_file_location(f"unlora_plugin_{file.stem}_{digest[:8]}", file)
    if spec is None or spec.loader is None:
        raise InputError(Problem("plugin", path, "it is not a Python file", "name a file that ends in .py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # last, so that a file next to the plugin shadows no library
    before = set(sys.modules)
    plugin = Plugin(path, file, True, {file: digest})
    _run(file, plugin, partial(spec.loader.exec_module, module))
    plugin.files.update(_modules_beside(file, set(sys.modules) - before))


def _modules_beside(file: Path, names: set[str]) -> dict[Path, str]:
    """Return {file: SHA-256} of the modules in a plugin's folder that do not belong to an installed package."""
    found = (getattr(sys.modules[name], "__file__", None) for name in names if name.partition(".")[0] != "unlora")
    # Modules that are created in memory, such as some of torch's, have a file name without a folder.
    files = [Path(path).resolve() for path in found if path and Path(path).is_absolute()]
    own = [path for path in files if path.is_relative_to(file.parent) and "site-packages" not in path.parts]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in own}


def _load_entry_point(point: metadata.EntryPoint) -> None:
    """Import the object of an entry point, and call it if it is callable."""
    spec = importlib.util.find_spec(point.module.partition(".")[0])
    root = Path(spec.origin or ".").resolve() if spec else Path(point.module)
    package = f"{point.dist.name} {point.dist.version}" if point.dist else point.module
    plugin = Plugin(f"{point.name} ({package})", root.parent if root.stem == "__init__" else root, False)

    def load() -> None:
        found = point.load()
        if callable(found):
            found()

    _run(point, plugin, load)
    file = Path(str(sys.modules[point.module].__file__)).resolve()
    plugin.files[file] = hashlib.sha256(file.read_bytes()).hexdigest()


def _run(key: Path | metadata.EntryPoint, plugin: Plugin, load: Callable[[], object]) -> None:
    """Run the code of a plugin, and turn an error in it into an `InputError` with file and line.

    A plugin that fails is not recorded as loaded, so the next attempt runs it again.
    """
    LOADED[key] = plugin
    _loading.append(plugin)
    try:
        load()
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception):
            found = problem_in(error) or _problem(plugin, "", error)
        else:
            found = Problem("plugin", plugin.name, "it ends the program", _AS_A_PROGRAM)
        del LOADED[key]
        raise InputError(found) from error
    finally:
        _loading.pop()


def problem_in(error: Exception) -> Problem | None:
    """Return an error in the code of a plugin as a problem with file and line, or None if no plugin was running."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno, frame.name) for frame in frames]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno, "<module>"))
    for file, line, function in reversed(places):
        for plugin in LOADED.values():
            if plugin.owns(file):
                inside = "" if function == "<module>" else f", in {function}"
                return _problem(plugin, f"{_shown(Path(file))}, line {line}{inside}: ", error)
    return None


def _problem(plugin: Plugin, place: str, error: Exception) -> Problem:
    if isinstance(error, InputError):  # an entry that the plugin registers was refused
        own = error.problems[0]
        return Problem("plugin", plugin.name, f"{place}{own.argument}={own.value!r}: {own.reason}", own.fix)
    what = error.msg if isinstance(error, SyntaxError) else str(error)
    return Problem("plugin", plugin.name, f"{place}{type(error).__name__}: {what}".rstrip(": ."), "correct it there")


def flags() -> list[str]:
    """Return the flags that make another process load the same files. It finds installed plugins by itself."""
    return [part for plugin in LOADED.values() if plugin.is_file for part in (FLAG, plugin.name)]


def shown_flags() -> list[str]:
    """Return the same flags without absolute paths of this machine."""
    files = [plugin.root for plugin in LOADED.values() if plugin.is_file]
    return [part for file in files for part in (FLAG, _shown(file))]


def described() -> list[dict[str, str]]:
    """Return name and hash of each file of plugin code, for the record of a run."""
    return [
        {"file": _shown(file), "sha256": digest, "plugin": _shown(plugin.root) if plugin.is_file else plugin.name}
        for plugin in LOADED.values()
        for file, digest in plugin.files.items()
    ]


def hashes_of(choices: Mapping[str, str]) -> list[str]:
    """Return the hashes of the code of the plugins that registered some choices, {kind: name}."""
    origins = [ORIGINS.get(choice) for choice in choices.items()]
    return sorted({digest for plugin in origins if plugin for digest in plugin.files.values()})


def unshared_problems(choices: Mapping[str, str]) -> list[Problem]:
    """Return a problem for each choice, {kind: name}, that the program itself registered: other processes lack it."""
    reason = "the program itself has registered it, and the processes that it starts would not know it"
    fix = f"put it into a file, and add {FLAG} FILE.py"
    return [
        Problem(kind.replace(" ", "_"), name, reason, fix)
        for kind, name in choices.items()
        if (kind, name) in ORIGINS and ORIGINS[kind, name] is None
    ]


def _shown(file: Path) -> str:
    """Return the path relative to the current folder, or the file name alone if the file is elsewhere."""
    file, here = file.resolve(), Path.cwd()
    return file.relative_to(here).as_posix() if file.is_relative_to(here) else file.name
