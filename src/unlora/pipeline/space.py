"""Turn the folder of an exported adapter into a Hugging Face Space with the chat page."""

from __future__ import annotations

import shutil
from importlib.metadata import requires, version
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

import unlora
from unlora.common.errors import Problem
from unlora.common.files import write_json, write_text
from unlora.data.sources import HUB_ID
from unlora.runs.folder import ADAPTER, checked_settings, saved_settings
from unlora.settings import EvalSettings, ModelConfig
from unlora.settings.data import TextConfig

# The file that the page reads: the base model, its text format, and the default length of answers.
SPACE = "space.json"
_APP, _REQUIREMENTS, _CARD = "app.py", "requirements.txt", "README.md"
_APP_CODE = '''"""Ask the original and the unlearned model side by side. Written by `unlora export --space`."""

from pathlib import Path

from unlora.chat.space import serve

serve(Path(__file__).parent)
'''
_TEXT = """---
{{ card_data }}
---

# {{ title }}

Ask a model before and after unlearning, side by side. The page was written by `unlora export --space`.
`{{ app }}` loads the base model that `{{ settings }}` names and the adapter in `{{ adapter }}/`. No row of the forget
set is in this folder. The code of unlora is in `unlora/`, so the Space only needs what `{{ requirements }}` lists.

To try the page on your own computer:

```bash
pip install -r {{ requirements }} gradio=={{ gradio }}
python {{ app }}
```
"""


def space_problems() -> list[Problem]:
    """Return a problem if gradio is not installed: the Space is built with the installed version of it."""
    try:
        version("gradio")
    except ModuleNotFoundError:
        return [Problem("space", True, "gradio is not installed", "install it: pip install 'unlora[chat]'")]
    return []


def write_space(folder: Path, run: str, base: ModelConfig, title: str) -> None:
    """Write everything but the adapter into the folder, which can then be uploaded as it is.

    Args:
        folder: a folder with the adapter in its subfolder `adapter`.
        run: folder of the run, whose settings contain the text format.
        base: the base model that the Space loads.
        title: title of the Space.
    """
    values = saved_settings(run, "RUN")
    names = ("model_name_or_path", "model_revision", "dtype", "attn_implementation")
    text = checked_settings(TextConfig, values, run)
    write_json(
        folder / SPACE,
        {
            "base": {name: getattr(base, name) for name in names},
            "text": vars(text),
            "max_new_tokens": checked_settings(EvalSettings, values, run).max_new_tokens,
        },
    )
    write_text(folder / _APP, _APP_CODE)
    write_text(folder / _REQUIREMENTS, "".join(f"{line}\n" for line in _requirements()))
    write_text(folder / _CARD, f"{_card(base.model_name_or_path, title)}\n")
    package = Path(unlora.__path__[0])
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))


def _requirements() -> list[str]:
    """Return the requirements of the page, without gradio, whose version a Space takes from its card."""
    lines = (line.partition(";")[0].strip() for line in requires("unlora") or () if "extra ==" not in line)
    return sorted(lines)


def _card(base: str, title: str) -> SpaceCard:
    """Return the Space's card. Its metadata tells the Hub how to build and start the Space."""
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=version("gradio"),
        app_file=_APP,
        models=[base] if HUB_ID.fullmatch(base) else None,
        tags=["unlora", "machine-unlearning"],
        colorFrom="blue",
        colorTo="gray",
    )
    names = {"app": _APP, "settings": SPACE, "adapter": ADAPTER, "requirements": _REQUIREMENTS}
    return SpaceCard.from_template(data, template_str=_TEXT, title=title, gradio=version("gradio"), **names)
