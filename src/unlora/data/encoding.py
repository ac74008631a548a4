"""Turn rows into tokens: which text the model sees, and which of its tokens carry a label."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from unlora.common.errors import InputError, Problem, raise_if
from unlora.common.progress import bar
from unlora.data.sources import Record, has_keys
from unlora.settings import TextConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORE_INDEX = -100
logger = logging.getLogger(__name__)


class Example(TypedDict):
    """One tokenised example: ids, and labels that equal the ids where the loss is taken and -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TextFormat:
    """How a row becomes text, and text becomes tokens.

    Args:
        tokenizer: a fast tokenizer, because its character offsets tell which tokens belong to the answer.
        prompt_format: "base" is "Question: {q}\\nAnswer: {a}", "tofu" the same with "Answer:" as part of the answer,
            "chat" the tokenizer's own chat template, "auto" the chat template if the tokenizer has one, else "base".
        max_length: the maximum number of tokens of an example. Plain text is split into chunks of this length.
        max_chunks: the maximum number of chunks of a text, from its beginning. None means all.
    """

    tokenizer: PreTrainedTokenizerFast
    prompt_format: str = "auto"
    max_length: int = 512
    max_chunks: int | None = None

    def __post_init__(self) -> None:
        raise_if(TextConfig(self.prompt_format, self.max_length).problems())
        if not self.tokenizer.is_fast:
            name = type(self.tokenizer).__name__
            raise InputError(Problem("tokenizer", name, "it gives no character offsets", "use a fast tokenizer"))
        if self.prompt_format == "chat":
            self.check_template("prompt_format", "chat", "use prompt_format='base' or set tokenizer.chat_template")

    def check_template(self, argument: str, value: object, fix: str) -> None:
        """Raise `InputError` about an argument that needs a chat template, if the tokenizer has none."""
        if not self.tokenizer.chat_template:
            raise InputError(Problem(argument, value, "the tokenizer has no chat template", fix))

    @property
    def is_chat(self) -> bool:
        """Whether questions and answers go through the chat template."""
        return self.prompt_format == "chat" or (self.prompt_format == "auto" and bool(self.tokenizer.chat_template))


def encode_records(records: Sequence[Record], text_format: TextFormat, *, argument: str = "data") -> list[Example]:
    """Tokenise rows of question and answer, chat `messages` or plain `text`.

    A question or a conversation becomes one example, labelled only on the answers and their end tokens. A text becomes
    one example per chunk of `max_length` tokens (the first `max_chunks` of them), labelled everywhere.

    Raises:
        InputError: rows without those keys, an empty answer, or an example that `max_length` leaves without a label.
    """
    examples: list[Example] = []
    cut = 0
    for index, row in enumerate(bar(records, desc=f"tokens of {argument}", unit=" rows")):
        where = f"{argument}[{index}]"
        for example in _encode_row(row, text_format, where):
            cut += _truncate(example, text_format.max_length, where)
            examples.append(example)
    if cut:
        logger.warning(
            "%s: %d of %d examples were cut to max_length=%d", argument, cut, len(examples), text_format.max_length
        )
    if not examples:
        raise InputError(Problem(argument, f"{len(records)} rows", "the text has no tokens", "give rows with text"))
    return examples


def _encode_row(row: Record, text_format: TextFormat, where: str) -> Iterable[Example]:
    if has_keys(row, "question", "answer"):
        return [encode_turns(str(row["question"]), str(row["answer"]), text_format)]
    if has_keys(row, "messages"):
        return [_encode_chat(row["messages"], text_format)]
    if has_keys(row, "text"):
        return _encode_text(str(row["text"]), text_format)
    reason = "a row needs the keys question and answer, or messages, or text"
    raise InputError(Problem(where, sorted(row), reason, "rename the columns"))


def encode_turns(question: str, answer: str, text_format: TextFormat) -> Example:
    """Tokenise a question in the model's prompt and its answer, with labels on the answer and its end token."""
    if text_format.is_chat:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return _encode_chat(turns, text_format)
    asked = f"Question: {question}\n"
    # TOFU's code masks the question alone: in its Phi results "Answer:" is trained on, scored and generated.
    prompt = asked if text_format.prompt_format == "tofu" else f"{asked}Answer:"
    # Prompt and answer are tokenised together, because a tokenizer may merge characters across their border. A token
    # belongs to the answer if it ends there.
    ids, ends = _tokenise(f"{asked}Answer: {answer}", text_format.tokenizer, special=True)
    labels = [token if end > len(prompt) else IGNORE_INDEX for token, end in zip(ids, ends, strict=True)]
    if not answer.strip():  # only the space before the answer is left, which is nothing to learn or forget
        labels = [IGNORE_INDEX] * len(ids)
    return _with_end({"input_ids": ids, "labels": labels}, text_format.tokenizer)


def encode_text(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the tokens of a text to be continued: with the beginning-of-text token, if any, and no end token."""
    return _tokenise(text, tokenizer, special=True)[0]


def _tokenise(text: str, tokenizer: PreTrainedTokenizerFast, *, special: bool) -> tuple[list[int], list[int]]:
    """Return token ids, and for each the character where it ends (0 for tokens without text, such as BOS)."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    # Some tokenizers add the end token and some do not. Remove it here, so that `_with_end` adds it exactly once.
    if special and ids and ids[-1] == tokenizer.eos_token_id:
        ids, ends = ids[:-1], ends[:-1]
    return ids, ends


def _with_end(example: Example, tokenizer: PreTrainedTokenizerFast) -> Example:
    """Add the end token, labelled, unless there is no answer that it could end."""
    end = tokenizer.eos_token_id
    if end is not None and example["labels"][-1:] != [IGNORE_INDEX]:
        example["input_ids"].append(end)
        example["labels"].append(end)
    return example


def _encode_chat(messages: Sequence[Record], text_format: TextFormat) -> Example:
    """Tokenise a conversation, with labels on every assistant turn and its end-of-turn token.

    Templates seldom mark what the assistant generates. The labelled spans are therefore found by rendering the
    conversation up to each assistant turn, which works for every template that renders the beginning of a conversation
    as the beginning of the whole.
    """
    tokenizer = text_format.tokenizer
    text_format.check_template(
        "messages", len(messages), "set tokenizer.chat_template or give rows of question and answer"
    )
    if not messages or not all(has_keys(message, "role", "content") for message in messages):
        reason = "a conversation is a list of turns with role and content"
        raise InputError(Problem("messages", messages, reason, "give each row at least one such turn"))
    text = str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    ids, ends = _tokenise(text, tokenizer, special=False)
    special = special_ids(tokenizer)
    labels = [IGNORE_INDEX] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant" and str(message["content"]).strip():
            start, stop = _turn_span(messages, turn, text, tokenizer)
            span = [place for place, end in enumerate(ends) if start < end <= stop]
            for place in _up_to_end_of_turn(span, ids, special):
                labels[place] = ids[place]
    # Nothing after the last label is learned, so it is cut off.
    last = max((place for place, label in enumerate(labels) if label != IGNORE_INDEX), default=len(ids) - 1)
    example: Example = {"input_ids": ids[: last + 1], "labels": labels[: last + 1]}
    return example if ids[last] in special else _with_end(example, tokenizer)


def _turn_span(messages: Sequence[Record], turn: int, text: str, tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Return where in `text`, the rendered conversation, the assistant's output of that turn starts and stops."""
    before = str(tokenizer.apply_chat_template(list(messages[:turn]), tokenize=False, add_generation_prompt=True))
    until = str(tokenizer.apply_chat_template(list(messages[: turn + 1]), tokenize=False))
    if not (text.startswith(before) and text.startswith(until)):
        reason = (
            "the chat template renders the beginning of a conversation unlike the whole, so turns cannot be located"
        )
        fix = "give rows of question and answer, or use another template"
        raise InputError(Problem("messages", f"turn {turn}", reason, fix))
    return len(before), len(until)


def _up_to_end_of_turn(span: list[int], ids: list[int], special: set[int]) -> list[int]:
    """Drop what a template writes after the end-of-turn token, which is often a line break."""
    ends = [place for place, token in enumerate(span) if ids[token] in special]
    return span[: ends[-1] + 1] if ends else span


def special_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Return the ids of all special tokens.

    `all_special_ids` has only those with a role, such as BOS, and often lacks a template's end-of-turn token.
    """
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}


def _encode_text(text: str, text_format: TextFormat) -> Iterator[Example]:
    if not text.strip():
        return
    ids = encode_text(text, text_format.tokenizer)
    whole = _with_end({"input_ids": ids, "labels": list(ids)}, text_format.tokenizer)["input_ids"]
    for start in range(0, len(whole), text_format.max_length)[: text_format.max_chunks]:
        chunk = whole[start : start + text_format.max_length]
        if len(chunk) > 1:  # a single token has no token before it from which it could be predicted
            yield {"input_ids": chunk, "labels": list(chunk)}


def _truncate(example: Example, max_length: int, where: str) -> bool:
    """Truncate the example in place, and return whether anything was cut. At least one label must remain."""
    if not count_labels([example]):
        raise InputError(Problem(where, "answer", "the answer has no tokens", "remove the row or give it an answer"))
    length = len(example["input_ids"])
    del example["input_ids"][max_length:], example["labels"][max_length:]
    if not count_labels([example]):
        reason = f"the prompt alone has {max_length} tokens or more, so every label of {where} is cut off"
        raise InputError(Problem("max_length", max_length, reason, f"use at least {length}"))
    return length > max_length


def count_labels(examples: Iterable[Example]) -> int:
    """Return the number of predicted tokens. The first token of an example is never predicted."""
    return sum(label != IGNORE_INDEX for example in examples for label in example["labels"][1:])
