"""`unlora chat`: ask the original and the unlearned model of a run side by side, on a local web page."""

from __future__ import annotations

from unlora.common.errors import raise_if
from unlora.settings import ChatConfig, LoadedRunConfig

EXAMPLE = "unlora chat run --open_browser true"
SETTINGS = (LoadedRunConfig, ChatConfig)


def run(about: LoadedRunConfig, config: ChatConfig) -> int:
    """Serve the page of the run, print its address, and return on Ctrl-C."""
    from unlora.chat.server import check_gradio, free_port, serve

    # What can fail quickly is checked before the models are loaded, and gradio before `chat.page` imports it.
    raise_if(config.problems())
    free_port(config.port)
    check_gradio()
    from unlora.chat.page import build
    from unlora.chat.source import About, load_prompts, load_side_by_side
    from unlora.pipeline.attack import read_run

    target = read_run(about.run, about.trust_remote_code)
    prompts = load_prompts(target)
    for name, reason in prompts.missing.items():
        print(f"There are no prompts from the {name} set: {reason}")
    serve(build(load_side_by_side(target, config), About.of(target), prompts), config.port, config.open_browser)
    return 0
