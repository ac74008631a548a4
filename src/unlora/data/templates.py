"""Chat templates: render a conversation as the text that a model reads, and locate an answer in it.

The rendering is the same for training, scoring and generation, and does not depend on the day: thinking is off unless
requested, conversations without a system prompt get the given one, and templates that ask for the date get a fixed one.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from unlora.common.errors import InputError, Problem, unknown_name
from unlora.data.conversations import Asked, Context, Turn, is_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Variables that switch thinking off. A template ignores those that it does not know.
THINKING = ("enable_thinking", "thinking")
# Variables that come from the conversation, the tokenizer and transformers.
_GIVEN = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"}
_GIVEN |= {"raise_exception", "strftime_now", "namespace"}
# The date that templates get as today's. It is the one in open-unlearning's evaluation.
CHAT_DATE = "2025-04-10"
# A call of the function that gives templates the current date, with the format as a literal.
_NOW = re.compile(r"""strftime_now\s*\(\s*(["'])(.*?)\1\s*\)""")
# Tags around the parts that the assistant generates.
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Placed(NamedTuple):
    """A conversation as text, with the position of its last answer.

    Args:
        text: the conversation up to the end of the answer.
        start: index where the answer begins. The text before it is the prompt.
        spans: the parts of the text that the assistant generates, [(start, stop)], all at or after `start`.
        marked: whether the template itself marks these parts.
    """

    text: str
    start: int
    spans: list[tuple[int, int]]
    marked: bool


class _Rendered(NamedTuple):
    """The text that a template renders, and the parts that it marks as generated."""

    text: str
    marks: list[tuple[int, int]]


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with fixed values of its variables.

    Args:
        tokenizer: a tokenizer with a chat template.
        system_prompt: system prompt for conversations without one.
        kwargs: variables of the template.
        date: the current date for the template, as YYYY-MM-DD. None means `CHAT_DATE` for templates that ask for
            today's date, and no change for templates with a default date of their own.
    """

    tokenizer: PreTrainedTokenizerFast
    system_prompt: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None

    @property
    def thinks(self) -> bool:
        """Whether thinking was requested."""
        return any(self.kwargs.get(name) for name in THINKING)

    def unread(self) -> list[Problem]:
        """Return a problem for each variable that the template does not read. Thinking can always be switched off."""
        from jinja2.meta import find_undeclared_variables
        from transformers.utils.chat_template_utils import _compile_jinja_template

        source = self.tokenizer.get_chat_template()
        known = find_undeclared_variables(_compile_jinja_template(source).environment.parse(source))
        given = {name for name, value in self.kwargs.items() if value or name not in THINKING}
        options = known - _GIVEN
        if options:
            return [unknown_name("chat_template_kwargs", name, options) for name in sorted(given - known)]
        reason = "the chat template has no variables, so it would have no effect"
        return [Problem("chat_template_kwargs", name, reason, "leave it out") for name in sorted(given - known)]

    def described(self) -> dict[str, str]:
        """Return what determines the prompts besides the settings: the template's SHA-256, and the date."""
        template = self.tokenizer.get_chat_template()
        return {"template_sha256": sha256(template.encode()).hexdigest(), "date": self.date or CHAT_DATE}

    def place(self, asked: Asked, answer: str, where: str) -> Placed:
        """Render the conversation up to and including an answer, and locate the answer.

        The prompt is what the template renders as a generation prompt. Anything else that the template writes before
        every answer, such as an empty thought, also belongs to the prompt. Many templates render the turns before an
        answer differently once the answer is there, for example without a system prompt or earlier thoughts. In this
        case, the answer is rendered after only the last user turn, and appended to the prompt.

        Args:
            asked: a question, or the turns before the answer.
            answer: its text.
            where: the turn's name in error messages.

        Raises:
            InputError: the template refuses the conversation, or the answer cannot be located in its rendering.
        """
        context = self.context(asked)
        whole = self._render(context.answered(answer, self.thinks), context, where)
        if not context.turns:  # the assistant begins
            return self._within(whole, "", context, answer, where)
        prompt = self._render(context.turns, context, where, prompt=True).text
        if whole.text.startswith(prompt):
            return self._within(whole, prompt, context, answer, where)
        if whole.text.startswith(self._render(context.turns, context, where).text):
            # The generation prompt opens a thought that the answer does not have.
            return self._within(whole, _common_start(prompt, whole.text), context, answer, where)
        return self._after(prompt, context, answer, where)

    def context(self, asked: Asked) -> Context:
        """Return the question or turns as a context, with the system prompt added if it has none."""
        context = Context.of([{"role": "user", "content": asked}]) if isinstance(asked, str) else asked
        if self.system_prompt is None or any(map(is_system, context.turns[:1])):
            return context
        return context.after([{"role": "system", "content": self.system_prompt}])

    @cached_property
    def ends(self) -> str:
        """The text that the template writes after every answer."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant"}]
        texts = [self._render([turns[0], {**turns[1], "content": said}], Context.of([]), "x").text for said in "bc"]
        return _common_start(*(text[::-1] for text in texts))[::-1]

    def _within(self, whole: _Rendered, prompt: str, context: Context, answer: str, where: str) -> Placed:
        """Locate an answer in the rendering of the whole conversation, which begins with the prompt."""
        start = len(prompt)
        if not (prompt and self.thinks):
            start = max(start, self._header_length(whole.text, context, answer, where))
        marks = [(max(first, start), stop) for first, stop in whole.marks if stop > start]
        return Placed(whole.text, start, marks or [(start, len(whole.text))], bool(marks))

    def _header_length(self, text: str, context: Context, answer: str, where: str) -> int:
        """Return the length of what the template writes before any answer at this point, without trailing spaces."""
        other = "b" if answer.strip()[:1] != "b" else "c"
        same = _common_start(text, self._render(context.answered(other), context, where).text)
        return len(same.rstrip(" "))

    def _after(self, prompt: str, context: Context, answer: str, where: str) -> Placed:
        """Append the answer to the prompt in the form that the template gives it after only the last user turn."""
        turns = context.turns
        last = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=0)
        short = Context.of(turns[last:], context.tools, context.beside)
        asked = self._render(short.turns, short, where, prompt=True).text
        whole = self._render(short.answered(answer, self.thinks), short, where)
        if not whole.text.startswith(asked):
            reason = (
                "the chat template renders an answer differently from its generation prompt, so it cannot be located"
            )
            raise InputError(Problem(where, answer, reason, "use another template, or rows of question and answer"))
        placed = self._within(whole, asked, short, answer, where)
        more = len(prompt) - len(asked)
        spans = [(start + more, stop + more) for start, stop in placed.spans]
        return Placed(prompt + placed.text[len(asked) :], placed.start + more, spans, placed.marked)

    def _render(self, turns: Sequence[Turn], context: Context, where: str, prompt: bool = False) -> _Rendered:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            template = _dated(self.tokenizer.get_chat_template(None, context.tools), self._today)
            texts, marks = render_jinja_template(
                [list(turns)],
                context.tools,
                chat_template=template,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=bool(_MARKS.search(template)),
                **{**self.tokenizer.special_tokens_map, **self._variables},
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            added = self.system_prompt is not None and turns[0].get("content") == self.system_prompt
            fix = f"{'leave out system_prompt' if added else 'change the row'}, or use another template"
            roles = [turn["role"] for turn in turns]
            raise InputError(Problem(where, roles, f"the chat template refuses it: {error}", fix)) from error
        return _Rendered(str(texts[0]), list(marks[0]) if marks else [])

    @cached_property
    def _today(self) -> datetime.date:
        return datetime.date.fromisoformat(self.date or CHAT_DATE)

    @cached_property
    def _variables(self) -> dict[str, Any]:
        variables: dict[str, Any] = dict.fromkeys(THINKING, False)
        if self.date is not None:
            variables["date_string"] = self._today.strftime("%d %b %Y")
        return {**variables, **self.kwargs}


@lru_cache
def _dated(template: str, today: datetime.date) -> str:
    """Write the date into the template, because transformers passes no functions to templates."""
    dated = _NOW.sub(lambda call: repr(today.strftime(call[2])), template)
    if re.search(r"strftime_now\s*\(", dated):
        raise ValueError("it asks for the current date in a format that is not a literal, so no date can be fixed")
    return dated


def _common_start(one: str, other: str) -> str:
    """Return the longest common prefix of two texts."""
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return one[: sum(1 for _ in equal)]
