"""Extract the answers of a row: the answer to its question, or each assistant turn of a conversation with its context.

Conversations come in many forms: with a system prompt, several turns, tool calls, content in parts, a first turn by the
assistant, or as a JSON string. `answers_of` converts all of them to one form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from unlora.common.errors import InputError, Problem, raise_if, short

# A turn has a role, a content, which is a text, and optional tool calls. A chat template may read further keys.
Turn = dict[str, Any]
# Keys of a turn with the model's reasoning before its answer.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# Columns that belong to a single answer. If a row has several answers, they must be in its turns.
_OF_ANSWER = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")
# The keys of a turn that a model learns from. Others, such as ids, are metadata.
_TAUGHT = ("content", "role", "tool_calls")


@dataclass(frozen=True)
class Context:
    """The turns of a conversation before an answer of the assistant.

    They are stored as JSON, so that a context is hashable.

    Args:
        json: {"turns": the turns, "tools": tool descriptions or None, "beside": other keys of the answer's turn}.
    """

    json: str

    @classmethod
    def of(cls, turns: Sequence[Turn], tools: Any = None, beside: Mapping[str, Any] | None = None) -> Context:
        """Return the context of these turns. The arguments are the entries of `json`."""
        return cls(json.dumps({"turns": list(turns), "tools": tools, "beside": beside or {}}, ensure_ascii=False))

    @cached_property
    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = json.loads(self.json)
        return parts

    @property
    def turns(self) -> list[Turn]:
        """The turns."""
        return list(self._parts["turns"])

    @property
    def tools(self) -> Any:
        """Descriptions of the tools that the assistant may call, or None."""
        return self._parts["tools"]

    @property
    def beside(self) -> Turn:
        """Keys of the answer's turn besides role and content, such as tool calls."""
        return dict(self._parts["beside"])

    def answered(self, answer: str, thinks: bool = False) -> list[Turn]:
        """Return the conversation up to and including an answer, with its tool calls.

        Args:
            answer: the text of the answer.
            thinks: whether the answer's turn keeps its reasoning.
        """
        beside = {key: value for key, value in self.beside.items() if thinks or key not in _THOUGHTS}
        return [*self.turns, {**beside, "role": "assistant", "content": answer}]

    def after(self, turns: Sequence[Turn]) -> Context:
        """Return the context with further turns before it, inserted after its system prompt."""
        own = self.turns
        system = [turn for turn in own[:1] if is_system(turn)]
        return Context.of([*system, *turns, *own[len(system) :]], self.tools, self.beside)

    def asking(self, question: str) -> Context:
        """Return the context with its last user turn replaced by `question`."""
        turns = self.turns
        last = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns))
        turns[last : last + 1] = [{"role": "user", "content": question}]
        return Context.of(turns, self.tools, self.beside)

    def shown(self) -> list[list[str]]:
        """Return role and text of each turn for display. The text includes tool calls."""
        return [[turn["role"], "\n".join(texts_of(turn))] for turn in self.turns]

    def __str__(self) -> str:
        return "\n".join(turn["content"] for turn in self.turns)


# The input for an answer: a question, or the turns of a conversation before the answer.
Asked = str | Context


class Answered(NamedTuple):
    """An answer with its question or context.

    Args:
        asked: the question, or the turns before the answer.
        answer: its text.
        columns: all columns of the answer, such as wrong answers.
        where: its row and turn, for error messages.
    """

    asked: Asked
    answer: str
    columns: Mapping[str, Any]
    where: str


def is_system(turn: Turn) -> bool:
    """Return whether a turn is a system prompt."""
    return turn["role"] in ("system", "developer")


def answers_of(row: Mapping[str, Any], where: str = "row") -> list[Answered]:
    """Return the answers in a row: the answer to its question, or every assistant turn with a text.

    If a row has one answer, the row's columns belong to it. If a conversation has several, the columns of each answer
    are the keys of its turn.

    Args:
        row: has the columns question and answer, or messages. Any other row has no answers.
        where: the row's name in error messages.

    Raises:
        InputError: a conversation cannot be read, or no assistant turn has a text.
    """
    if row.get("question") is not None and row.get("answer") is not None:
        return [Answered(str(row["question"]), str(row["answer"]), row, where)]
    if row.get("messages") is None:
        return []
    turns = read_turns(row["messages"], where)
    tools = _parsed(row.get("tools")) or None
    places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant" and turn["content"].strip()]
    if not places:
        reason = "the answer has no tokens: no turn of the assistant has a text"
        fix = "remove the row or give it a turn with the role assistant and a text"
        raise InputError(Problem(f"{where}.messages", [turn["role"] for turn in turns], reason, fix))
    if len(places) > 1:
        reason, fix = f"the row has {len(places)} answers", "write it into the assistant's turn that it belongs to"
        unclear = [key for key in _OF_ANSWER if row.get(key) is not None]
        raise_if(Problem(f"{where}.{key}", short(row[key]), reason, fix) for key in unclear)
    found = []
    for place in places:
        turn = turns[place]
        beside = {key: value for key, value in turn.items() if key not in ("role", "content")}
        columns = {**row, **turn} if len(places) == 1 else turn
        at = f"{where}.messages[{place}]"
        found.append(Answered(Context.of(turns[:place], tools, beside), turn["content"], columns, at))
    return found


def all_answers(rows: Iterable[Mapping[str, Any]], argument: str) -> list[Answered]:
    """Return the answers in all rows. Rows of plain text have none. `argument` names the rows in errors."""
    return [answer for place, row in enumerate(rows) for answer in answers_of(row, f"{argument}[{place}]")]


def read_turns(messages: Any, where: str = "row") -> list[Turn]:
    """Normalise the turns of a conversation: contents become texts, and the arguments of tool calls objects.

    Args:
        messages: a list of turns, or its JSON string. The content of a turn is a text, a list of text parts, or None.
        where: the row's name in error messages.

    Raises:
        InputError: it is not a conversation, or a turn has a content other than text.
    """
    value = _parsed(messages)
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        reason = "a conversation is a list of turns with role and content, or the JSON string of one"
        raise InputError(Problem(f"{where}.messages", short(messages), reason, "give each row at least one such turn"))
    return [_read_turn(turn, f"{where}.messages[{place}]") for place, turn in enumerate(value)]


def taught(messages: Any, where: str = "row") -> list[Turn]:
    """Return the turns of a conversation with only the keys that a model learns from."""
    return [{key: turn[key] for key in _TAUGHT if key in turn} for turn in read_turns(messages, where)]


def texts_of(turn: Turn) -> list[str]:
    """Return the texts of a turn: its content, and its tool calls as JSON."""
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return [turn["content"], *calls] if turn["content"] or not calls else calls


def _parsed(value: Any) -> Any:
    """Parse a JSON string. Return any other value, or text that is not JSON, unchanged."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _read_turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        reason = "a turn of a conversation has role and content"
        fix = 'write it as {"role": "user", "content": "..."}'
        if isinstance(turn, Mapping) and {"from", "value"} <= turn.keys():  # ShareGPT's names
            fix = "rename from and value to role and content, and the roles human and gpt to user and assistant"
        raise InputError(Problem(where, short(turn), reason, fix))
    if "content" not in turn and not turn.get("tool_calls"):
        reason = "a turn has role and content, and this one has no content"
        raise InputError(Problem(where, sorted(turn), reason, "rename the key that holds its text to content"))
    # Tables fill missing keys with None, but templates test whether a key exists.
    kept = {key: value for key, value in turn.items() if value is not None}
    if "tool_calls" in kept:
        kept["tool_calls"] = _read_calls(kept["tool_calls"], f"{where}.tool_calls")
    return {**kept, "content": _read_content(turn.get("content"), where)}


def _read_content(content: Any, where: str) -> str:
    """Return the text of a turn. It is empty if the turn only calls tools."""
    if content is None or isinstance(content, str):
        if half := half_character(content or ""):
            raise InputError(Problem(f"{where}.content", short(content), *half))
        return content or ""
    if not isinstance(content, Sequence):
        reason = f"it is of type {type(content).__name__}, not a text"
        raise InputError(Problem(f"{where}.content", short(content), reason, "write it as a text"))
    texts = []
    for place, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            reason, fix = "only parts with a text are read", "remove the row, or this part of it"
            raise InputError(Problem(f"{where}.content[{place}]", short(part), reason, fix))
        texts.append(text)
    return _read_content("".join(texts), where)


def half_character(text: str) -> tuple[str, str] | None:
    """Return reason and fix if the text has a lone surrogate, which JSON allows and no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"character {error.start} is half of a surrogate pair ({text[error.start]!a})", "write the whole pair"
    return None


def _read_calls(calls: Any, where: str) -> list[Turn]:
    if not isinstance(calls, Sequence) or not all(isinstance(call, Mapping) for call in calls):
        raise InputError(
            Problem(where, short(calls), "tool calls are a list of objects", "write them in OpenAI's format")
        )
    return [_read_call(call) for call in calls]


def _read_call(call: Mapping[str, Any]) -> Turn:
    """Return a tool call with its arguments as an object, as templates expect. OpenAI's format has a JSON string."""
    kept = {key: value for key, value in call.items() if value is not None}
    if isinstance(kept.get("function"), Mapping):
        kept["function"] = _read_call(kept["function"])
    if isinstance(arguments := _parsed(kept.get("arguments")), Mapping):
        kept["arguments"] = arguments
    return kept
