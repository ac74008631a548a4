"""Chat templates: a conversation as the text that a model reads, and where in it an answer stands.

Three things are the same for training, scoring and generation, and on every day. Thinking is off unless it is asked
for, the system prompt is the given one where a conversation has none, and templates that ask for the date get a fixed
one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from hashlib import sha256
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from unlora.common.errors import InputError, Problem, unknown_name
from unlora.data.conversations import Asked, Context, Turn, is_system

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The variables by which templates switch thinking off. Those that a template does not know have no effect.
THINKING = ("enable_thinking", "thinking")
# Variables that a template gets from the conversation and the tokenizer.
_GIVEN = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"}
_GIVEN |= {"raise_exception", "strftime_now", "namespace"}
# What a template takes for today. It is the date of open-unlearning's evaluation.
CHAT_DATE = "2025-04-10"
# The marks around what the assistant generates.
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Placed(NamedTuple):
    """A conversation as text.

    Args:
        text: up to the end of an answer.
        start: where in it the answer begins. The text before it is the prompt.
        spans: which parts of it the assistant generates, [(start, stop)]. They begin at `start` or later.
        marked: whether the template itself marks them.
    """

    text: str
    start: int
    spans: list[tuple[int, int]]
    marked: bool


class _Rendered(NamedTuple):
    """What a template made of some turns, and the parts that it marks as generated."""

    text: str
    marks: list[tuple[int, int]]


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with fixed values.

    Args:
        tokenizer: has a chat template.
        system_prompt: of conversations that have none.
        kwargs: variables of the template.
        date: what the template takes for today, as YYYY-MM-DD. None is `CHAT_DATE` for templates that ask for today's
            date, and leaves templates alone that contain a date of their own.
    """

    tokenizer: PreTrainedTokenizerFast
    system_prompt: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None

    @property
    def thinks(self) -> bool:
        """Whether thinking was asked for."""
        return any(self.kwargs.get(name) for name in THINKING)

    def unread(self) -> list[Problem]:
        """Return a problem for each variable that the template does not read. Thinking may always be switched off."""
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
        """Return what identifies the prompts besides the settings: the template's SHA-256, and the date in them."""
        template = self.tokenizer.get_chat_template()
        return {"template_sha256": sha256(template.encode()).hexdigest(), "date": self.date or CHAT_DATE}

    def place(self, asked: Asked, answer: str, where: str) -> Placed:
        """Return the conversation up to and including an answer, and where in it the answer stands.

        The prompt is what the template renders for a model that is to answer. If the template puts something else in
        front of every answer, such as an empty thought, this belongs to the prompt, too. Many templates render a
        conversation with an answer unlike the same without it: they take away a system prompt, or earlier thoughts.
        Then the answer is rendered after the last turn of the user alone, and follows the prompt.

        Args:
            asked: a question, or the turns before the answer.
            answer: its text.
            where: what the user calls the turn, for error messages.

        Raises:
            InputError: the template refuses the conversation, or renders none from which the answer could be taken.
        """
        context = self.context(asked)
        whole = self._render(context.answered(answer, self.thinks), context, where)
        if not context.turns:  # the assistant begins
            return self._within(whole, "", context, answer, where)
        prompt = self._render(context.turns, context, where, prompt=True).text
        if whole.text.startswith(prompt):
            return self._within(whole, prompt, context, answer, where)
        if whole.text.startswith(self._render(context.turns, context, where).text):
            # The prompt opens a thought, and the answer has none.
            return self._within(whole, _common_start(prompt, whole.text), context, answer, where)
        return self._behind(prompt, context, answer, where)

    def context(self, asked: Asked) -> Context:
        """Return what the model is asked as turns, with the system prompt if they have none."""
        context = Context.of([{"role": "user", "content": asked}]) if isinstance(asked, str) else asked
        if self.system_prompt is None or any(map(is_system, context.turns[:1])):
            return context
        return context.after([{"role": "system", "content": self.system_prompt}])

    @cached_property
    def ends(self) -> str:
        """What the template writes behind every answer."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant"}]
        texts = [self._render([turns[0], {**turns[1], "content": said}], Context.of([]), "x").text for said in "bc"]
        return _common_start(*(text[::-1] for text in texts))[::-1]

    def _within(self, whole: _Rendered, prompt: str, context: Context, answer: str, where: str) -> Placed:
        """Place an answer in the rendering of the whole conversation, which begins with the prompt."""
        start = len(prompt)
        if not (prompt and self.thinks):
            start = max(start, self._header(whole.text, context, answer, where))
        marks = [(max(first, start), stop) for first, stop in whole.marks if stop > start]
        return Placed(whole.text, start, marks or [(start, len(whole.text))], bool(marks))

    def _header(self, text: str, context: Context, answer: str, where: str) -> int:
        """Return how far the rendering of an answer agrees with that of any other one, apart from blanks at the end."""
        other = "b" if answer.strip()[:1] != "b" else "c"
        same = _common_start(text, self._render(context.answered(other), context, where).text)
        return len(same.rstrip(" "))

    def _behind(self, prompt: str, context: Context, answer: str, where: str) -> Placed:
        """Place an answer behind the prompt as the template renders it after the last turn of the user alone."""
        turns = context.turns
        last = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=0)
        short = Context.of(turns[last:], context.tools, context.beside)
        asked = self._render(short.turns, short, where, prompt=True).text
        whole = self._render(short.answered(answer, self.thinks), short, where)
        if not whole.text.startswith(asked):
            reason = "the chat template renders an answer unlike what it asks the model for, so it cannot be located"
            raise InputError(Problem(where, answer, reason, "use another template, or rows of question and answer"))
        placed = self._within(whole, asked, short, answer, where)
        more = len(prompt) - len(asked)
        spans = [(start + more, stop + more) for start, stop in placed.spans]
        return Placed(prompt + placed.text[len(asked) :], placed.start + more, spans, placed.marked)

    def _render(self, turns: Sequence[Turn], context: Context, where: str, prompt: bool = False) -> _Rendered:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            template = self.tokenizer.get_chat_template(None, context.tools)
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
    def _variables(self) -> dict[str, Any]:
        today = date.fromisoformat(self.date or CHAT_DATE)
        variables = {**dict.fromkeys(THINKING, False), "strftime_now": today.strftime}
        if self.date is not None:
            variables["date_string"] = today.strftime("%d %b %Y")
        return {**variables, **self.kwargs}


def _common_start(one: str, other: str) -> str:
    """Return the longest text that both begin with."""
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return one[: sum(1 for _ in equal)]
