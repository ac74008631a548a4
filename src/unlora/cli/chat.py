"""`unlora chat`: ask the original and the unlearned model of a run side by side, on a local web page."""

from __future__ import annotations

from unlora.cli.arguments import parse
from unlora.common.errors import InputError, Problem
from unlora.settings import ChatConfig

EXAMPLE = "unlora chat run --open_browser true"
SETTINGS = (ChatConfig,)
ARGUMENT = "RUN"


def run(argv: list[str]) -> int:
    """Serve the page of the run that is named first, print its address, and return on Ctrl-C."""
    named = bool(argv) and not argv[0].startswith("-")
    (config,) = parse(SETTINGS, argv[1:] if named else argv, "chat RUN", EXAMPLE)
    if not named:
        raise InputError(Problem("RUN", "", "no run is named", "name its folder first: unlora chat RUN"))
    from unlora.chat.server import check_gradio, free_port, serve

    free_port(config.port)
    check_gradio()
    from unlora.chat.page import build
    from unlora.chat.source import load_prompts, load_side_by_side
    from unlora.pipeline.attack import read_run

    target = read_run(argv[0])
    prompts = load_prompts(target)
    for name, reason in prompts.missing.items():
        print(f"There are no prompts from the {name} set: {reason}")
    serve(build(load_side_by_side(target), target, prompts), config.port, config.open_browser)
    return 0
