"""The page: a question, both answers and, on request, the probability of every token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from unlora.chat.answers import SIDES, Sampling, SideBySide
from unlora.chat.source import About, Prompt, Prompts, asked_after
from unlora.chat.tokens import token_sections
from unlora.common.errors import InputError
from unlora.data import Asked, Context

# System fonts, because Gradio's themes may fetch their fonts from the network.
_SANS, _MONO = ("ui-sans-serif", "system-ui", "sans-serif"), ("ui-monospace", "Consolas", "monospace")
LOOK = {
    "theme": gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_SANS, font_mono=_MONO),
    "css_paths": Path(__file__).with_name("page.css"),
}
_LONGEST_ANSWER = 1024  # tokens, if the model and the settings allow that many
_PROMPTS_A_PAGE = 5
# There is only one model. Several questions share it token by token, so that a long answer does not block the others.
_SHARED: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 4, "api_visibility": "private"}


class _Asked(NamedTuple):
    """The last question, and {side: tokens of its answer}."""

    question: Asked
    tokens: dict[str, list[int]]


class _Handlers:
    """The event handlers of the page."""

    def __init__(self, models: SideBySide) -> None:
        self.models = models

    def ask(
        self, earlier: Context | None, question: str, max_new_tokens: float, temperature: float
    ) -> Iterator[tuple[str, str, _Asked]]:
        """Yield both answers while they are generated."""
        asked = asked_after(earlier, question)
        yield "", "", _Asked(asked, {side: [] for side in SIDES})
        with (
            _shown_errors(),
            closing(self.models.answers(asked, Sampling(int(max_new_tokens), temperature))) as news,
        ):
            for tokens in news:
                original, unlearned = (self.models.text(tokens[side]) for side in SIDES)
                yield original, unlearned, _Asked(asked, {side: list(tokens[side]) for side in SIDES})

    def probabilities(
        self, wanted: bool, earlier: Context | None, question: str, reference: str, last: _Asked | None
    ) -> str:
        """Return the tokens of the reference and of both answers as HTML; empty unless `wanted`."""
        if not wanted:
            return ""
        asked = asked_after(earlier, question)
        answers: dict[str, str | list[int]] = {"Reference answer": reference} if reference.strip() else {}
        if last is not None and last.question == asked:
            answers |= {f"{side.capitalize()} model's answer": last.tokens[side] for side in SIDES}
        with _shown_errors():
            return token_sections(
                {title: self.models.score(asked, answer) for title, answer in answers.items() if answer}
            )


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Show invalid input as a message on the page. The message is escaped, because Gradio reads it as HTML."""
    try:
        yield
    except InputError as error:
        raise gr.Error(escape(str(error)), duration=None, print_exception=False) from error


def build(models: SideBySide, about: About, prompts: Prompts) -> gr.Blocks:
    """Build the page, without serving it."""
    with gr.Blocks(title="unlora chat", analytics_enabled=False) as page:
        gr.HTML(_heading(about, prompts))
        question = gr.Textbox(label="Question", placeholder="Ask both models", max_lines=8, render=False)
        reference = gr.Textbox(label="Reference answer", max_lines=8, render=False)
        earlier, shown = gr.State(), gr.HTML(render=False)
        filled = [question, reference, earlier, shown]
        with gr.Row():
            clicks = [_prompt_list(name, found, filled) for name, found in prompts.sets.items()]
        shown.render()
        question.render()
        with gr.Row():
            ask = gr.Button("Ask", variant="primary", scale=0, min_width=140)
            stop = gr.Button("Stop", scale=0, min_width=100)
            new = gr.Button("New conversation", scale=0, min_width=180)
        settings = _sampling_settings(models, about)
        with gr.Row():
            answers = [_answer_box(side) for side in SIDES]
        reference.render()
        wanted = gr.Checkbox(label="Token probabilities")
        tokens = gr.HTML()
        asked = gr.State()

        handlers = _Handlers(models)
        asking = (handlers.ask, [earlier, question, *settings], [*answers, asked])
        scoring = (handlers.probabilities, [wanted, earlier, question, reference, asked], tokens)
        running = []
        for event in (ask.click, question.submit, *(click.then for click in clicks)):
            answering = event(*asking, scroll_to_output=True, **_SHARED)
            running += [answering, answering.success(*scoring, **_SHARED)]
        for event in (wanted.change, reference.submit):
            running.append(event(*scoring, **_SHARED))
        stop.click(None, cancels=running)
        new.click(lambda: ("", "", None, ""), None, filled, api_visibility="private")
    return page


def _heading(about: About, prompts: Prompts) -> str:
    """Return the heading as HTML: which models answer, and why a set has no prompts."""
    notes = "".join(
        f'<p class="note">There are no prompts from the {escape(name)} set: {escape(reason)}</p>'
        for name, reason in prompts.missing.items()
    )
    return (
        f'<header class="unlora"><h1>Original and unlearned, side by side</h1>'
        f"<p>{escape(about.base)}, without and with the adapter of {escape(about.adapter)}. "
        f"A question follows the turns that are shown above it. {escape(about.note)}</p>{notes}</header>"
    )


def _prompt_list(name: str, prompts: list[Prompt], filled: list[Any]) -> Any:
    """Add the list of one set's questions, and return the event of a click, which fills in the `filled` components."""
    with gr.Column(min_width=300):
        questions = gr.Dataset(
            label=f"{name.capitalize()} set",
            components=[gr.Textbox(render=False)],
            samples=[[prompt.label] for prompt in prompts],
            samples_per_page=_PROMPTS_A_PAGE,
            type="index",
        )

    def fill(place: int) -> tuple[str, str, Context | None, str]:
        prompt = prompts[place]
        return prompt.question, prompt.answer, prompt.earlier, _conversation(prompt.earlier)

    return questions.click(fill, questions, filled, api_visibility="private")


def _conversation(earlier: Context | None) -> str:
    """Return the turns before a question as HTML, with all text escaped."""
    turns = earlier.shown() if earlier else []
    items = "".join(f"<dt>{escape(role.capitalize())}</dt><dd>{escape(text)}</dd>" for role, text in turns)
    return f'<dl class="turns" aria-label="Conversation before the question">{items}</dl>' if items else ""


def _answer_box(side: str) -> gr.Textbox:
    """Return the box for one model's answer, which is always shown as plain text."""
    return gr.Textbox(
        label=side.capitalize(),
        lines=3,
        max_lines=16,
        min_width=280,
        interactive=False,
        buttons=[],  # with a button inside, the label would no longer belong to the text
        elem_id=f"{side}-answer",
    )


def _sampling_settings(models: SideBySide, about: About) -> list[gr.Slider]:
    """Add sliders for the settings that `_Handlers.ask` takes after the question."""
    longest = min(models.longest, _LONGEST_ANSWER)
    usual = min(about.max_new_tokens, longest)
    with gr.Accordion("Settings", open=False):
        return [
            gr.Slider(1, longest, usual, step=1, label="Maximum answer length in tokens"),
            gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 is greedy decoding, as in the evaluation."),
        ]
