"""The page as a Hugging Face Space, from a folder with an adapter and the files of `unlora.pipeline.space`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unlora.chat.server import LONGEST_QUEUE, check_gradio
from unlora.common.reading import read_json
from unlora.pipeline.space import SPACE
from unlora.runs.folder import ADAPTER
from unlora.settings import ModelConfig
from unlora.settings.data import TextConfig

if TYPE_CHECKING:
    import gradio as gr


def space_page(folder: Path) -> gr.Blocks:
    """Build the page of a Space's folder, without serving it. There are no prompts, because the folder has no rows."""
    check_gradio()
    from unlora.chat.page import build
    from unlora.chat.source import About, Prompts, load_models

    settings = read_json(folder / SPACE)
    base = ModelConfig(**settings["base"])
    models = load_models(base, TextConfig(**settings["text"]), folder / ADAPTER)
    about = About(base.model_name_or_path, folder.resolve().name, settings["max_new_tokens"], "")
    return build(models, about, Prompts({}, {}))


def serve(folder: Path) -> None:
    """Serve the page at the address that Spaces, or gradio's environment variables, set."""
    page = space_page(folder)
    from unlora.chat.page import LOOK

    page.queue(max_size=LONGEST_QUEUE).launch(
        share=False, ssr_mode=False, enable_monitoring=False, run_history=False, footer_links=[], **LOOK
    )
