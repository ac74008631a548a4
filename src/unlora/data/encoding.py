"""Records to tokens: which text the model sees, and which tokens carry a label."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from unlora.common.errors import InputError, Problem, raise_if
from unlora.common.progress import bar
from unlora.data.sources import Record, has_keys
from unlora.settings import TextConfig

IGNORE_INDEX = -100
logger = logging.getLogger(__name__)


class Example(TypedDict):
    """One tokenised example: ids, and labels that equal the ids where the loss is taken and -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TextFormat:
    """How question and answer become text.

    Args:
        tokenizer: a fast tokenizer (character offsets tell which tokens belong to the answer).
        prompt_format: "base" is "Question: {q}\\nAnswer: {a}", "tofu" the same with "Answer:" as part of the answer,
            "chat" the tokenizer's own chat template, "auto" the chat template where the tokenizer has one.
        max_length: the most tokens an example may have; text is cut into chunks of this many.
        max_chunks: the most chunks of a text, from its beginning on; None is all.
    """

    tokenizer: Any
    prompt_format: str = "auto"
    max_length: int = 512
    max_chunks: int | None = None

    def __post_init__(self) -> None:
        raise_if(TextConfig(self.prompt_format, self.max_length).problems())
        if not self.tokenizer.is_fast:
            name = type(self.tokenizer).__name__
            raise InputError(Problem("tokenizer", name, "it gives no character offsets", "use a fast tokenizer"))
        if self.prompt_format == "chat" and not self.tokenizer.chat_template:
            fix = "use prompt_format='base' or set tokenizer.chat_template"
            raise InputError(Problem("prompt_format", "chat", "the tokenizer has no chat template", fix))

    @property
    def is_chat(self) -> bool:
        """Whether questions and answers go through the chat template."""
        return self.prompt_format == "chat" or (self.prompt_format == "auto" and bool(self.tokenizer.chat_template))


def encode_records(records: Sequence[Record], text_format: TextFormat, *, argument: str = "data") -> list[Example]:
    """Tokenises rows of question/answer, chat `messages` or plain `text`.

    A question/answer or chat row becomes one example, labelled on the answers and their end tokens only. A text row
    becomes one example per `max_length` tokens (the first `max_chunks` of them), labelled everywhere.

    Raises:
        InputError: rows without those keys, an empty answer, or labels all cut off by `max_length`.
    """
    examples: list[Example] = []
    cut = 0
    for index, row in enumerate(bar(records, desc=f"tokens of {argument}", unit=" rows")):
        where = f"{argument}[{index}]"
        if has_keys(row, "question", "answer"):
            encoded = [encode_turns(str(row["question"]), str(row["answer"]), text_format)]
        elif has_keys(row, "messages"):
            encoded = [_encode_chat(row["messages"], text_format)]
        elif has_keys(row, "text"):
            encoded = list(_encode_text(str(row["text"]), text_format))
        else:
            reason = "a row needs the keys question and answer, or messages, or text"
            raise InputError(Problem(where, sorted(row), reason, "rename the columns"))
        for example in encoded:
            cut += _truncate(example, text_format.max_length, where)
        examples += encoded
    if cut:
        logger.warning(
            "%s: %d of %d examples were cut to max_length=%d", argument, cut, len(examples), text_format.max_length
        )
    if not examples:
        raise InputError(Problem(argument, f"{len(records)} rows", "the text has no tokens", "give rows with text"))
    return examples


def encode_turns(question: str, answer: str, text_format: TextFormat) -> Example:
    """Tokenises one question and its answer, in the model's prompt; labels on the answer and its end token."""
    if text_format.is_chat:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return _encode_chat(turns, text_format)
    asked = f"Question: {question}\n"
    # TOFU's code masks the question alone: in its Phi results "Answer:" is trained on, scored and generated.
    prompt = asked if text_format.prompt_format == "tofu" else f"{asked}Answer:"
    ids, ends = _tokenise(f"{asked}Answer: {answer}", text_format.tokenizer, special=True)
    labels = [token if end > len(prompt) else IGNORE_INDEX for token, end in zip(ids, ends, strict=True)]
    if not answer.strip():  # only the blank before the answer is left: nothing to learn or forget
        labels = [IGNORE_INDEX] * len(ids)
    return _with_end({"input_ids": ids, "labels": labels}, text_format.tokenizer)


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text that goes on: with the tokenizer's token of the beginning, if it has one, and no end."""
    return _tokenise(text, tokenizer, special=True)[0]


def _tokenise(text: str, tokenizer: Any, *, special: bool) -> tuple[list[int], list[int]]:
    """Token ids and the character at which each ends (0 for tokens that stand for no text, such as BOS)."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    if special and ids and ids[-1] == tokenizer.eos_token_id:  # added by the tokenizer; `_with_end` adds it once
        ids, ends = ids[:-1], ends[:-1]
    return ids, ends


def _with_end(example: Example, tokenizer: Any) -> Example:
    """Adds the end token, labelled, unless there is no answer to end."""
    end = tokenizer.eos_token_id
    if end is not None and example["labels"][-1:] != [IGNORE_INDEX]:
        example["input_ids"].append(end)
        example["labels"].append(end)
    return example


def _encode_chat(messages: Sequence[Record], text_format: TextFormat) -> Example:
    """Tokenises a conversation; labels on every assistant turn and its end-of-turn token.

    The spans are found by rendering the template up to each assistant turn: templates need no generation markers, but
    must render a conversation's beginning as the beginning of the whole.
    """
    tokenizer = text_format.tokenizer
    if not tokenizer.chat_template:
        fix = "set tokenizer.chat_template or give question/answer rows"
        raise InputError(Problem("messages", len(messages), "the tokenizer has no chat template", fix))
    if not messages or not all(has_keys(message, "role", "content") for message in messages):
        reason = "a conversation is a list of turns with role and content"
        raise InputError(Problem("messages", messages, reason, "give each row at least one such turn"))
    text = tokenizer.apply_chat_template(list(messages), tokenize=False)
    ids, ends = _tokenise(text, tokenizer, special=False)
    labels = [IGNORE_INDEX] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant" and str(message["content"]).strip():
            start, stop = _turn_span(messages, turn, text, tokenizer)
            span = [i for i, end in enumerate(ends) if start < end <= stop]
            for i in _until_end_token(span, ids, tokenizer):
                labels[i] = ids[i]
    last = max((i for i, label in enumerate(labels) if label != IGNORE_INDEX), default=len(ids) - 1)
    example: Example = {"input_ids": ids[: last + 1], "labels": labels[: last + 1]}  # nothing after it is learned
    return example if ids[last] in special_ids(tokenizer) else _with_end(example, tokenizer)


def _turn_span(messages: Sequence[Record], turn: int, text: str, tokenizer: Any) -> tuple[int, int]:
    """The characters of `text` that the assistant produced in that turn."""
    before = tokenizer.apply_chat_template(list(messages[:turn]), tokenize=False, add_generation_prompt=True)
    until = tokenizer.apply_chat_template(list(messages[: turn + 1]), tokenize=False)
    if not (text.startswith(before) and text.startswith(until)):
        reason = (
            "the chat template renders the beginning of a conversation unlike the whole, so turns cannot be located"
        )
        raise InputError(Problem("messages", f"turn {turn}", reason, "give question/answer rows or another template"))
    return len(before), len(until)


def _until_end_token(span: list[int], ids: list[int], tokenizer: Any) -> list[int]:
    """Drops what a template writes after the end-of-turn token (often a line break)."""
    special = special_ids(tokenizer)
    ends = [place for place, i in enumerate(span) if ids[i] in special]
    return span[: ends[-1] + 1] if ends else span


def special_ids(tokenizer: Any) -> set[int]:
    """Every special token: `all_special_ids` has only those with a role, often without the template's end of turn."""
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}


def _encode_text(text: str, text_format: TextFormat) -> Iterator[Example]:
    ids = encode_text(text, text_format.tokenizer)
    if not text.strip():
        return
    whole = _with_end({"input_ids": ids, "labels": list(ids)}, text_format.tokenizer)["input_ids"]
    for start in range(0, len(whole), text_format.max_length)[: text_format.max_chunks]:
        chunk = whole[start : start + text_format.max_length]
        if len(chunk) > 1:  # a single token has nothing before it to be predicted from
            yield {"input_ids": chunk, "labels": list(chunk)}


def _truncate(example: Example, max_length: int, where: str) -> bool:
    """Cuts the example in place and says whether anything was cut; at least one label must survive."""
    if not count_labels([example]):
        raise InputError(Problem(where, "answer", "the answer has no tokens", "remove the row or give it an answer"))
    length = len(example["input_ids"])
    del example["input_ids"][max_length:], example["labels"][max_length:]
    if not count_labels([example]):
        reason = f"the prompt alone has {max_length} tokens or more, so every label of {where} is cut off"
        raise InputError(Problem("max_length", max_length, reason, f"use at least {length}"))
    return length > max_length


def count_labels(examples: Iterable[Example]) -> int:
    """How many tokens are predicted; the first token of an example never is."""
    return sum(label != IGNORE_INDEX for example in examples for label in example["labels"][1:])
