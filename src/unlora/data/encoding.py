"""Turn rows into tokens and labels."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from unlora.common.errors import InputError, Problem, raise_if
from unlora.common.progress import bar
from unlora.data.conversations import Asked, answers_of
from unlora.data.sources import Record, is_text
from unlora.data.templates import ChatTemplate
from unlora.settings import TextConfig
from unlora.settings.data import QUESTION

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

IGNORE_INDEX = -100
# Number of texts per call of the tokenizer. More are not faster.
_BATCH = 1000
logger = logging.getLogger(__name__)


class Example(TypedDict):
    """A tokenised example. Labels equal the ids where the loss is computed, and are -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TextFormat:
    """How rows are converted to text, and text to tokens.

    Args:
        tokenizer: a fast tokenizer, because its character offsets tell which tokens belong to the answer.
        prompt_format: "base" is "Question: {q}\\nAnswer: {a}"; "tofu" is the same text with "Answer:" as part of the
            answer; "chat" is the tokenizer's chat template; "auto" is "chat" if there is a template, else "base".
        max_length: the maximum number of tokens of an example. Plain text is split into chunks of this length.
        max_chunks: the maximum number of chunks of a text, starting with the first. None means all.
        system_prompt: system prompt for questions and for conversations without one, if there is a chat template.
        chat_template_kwargs: variables of the chat template.
        chat_date: the date in the prompts of the chat template, see `ChatTemplate`.
        embeddings: the number of the model's token embeddings. Tokens without an embedding are refused.
        positions: the maximum sequence length of the model, for error messages.
        prompt_template: the text before an answer, with {question}. It replaces `prompt_format`.
    """

    tokenizer: PreTrainedTokenizerFast
    prompt_format: str = "auto"
    max_length: int = 512
    max_chunks: int | None = None
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    chat_date: str | None = None
    embeddings: int | None = None
    positions: int | None = None
    prompt_template: str | None = None

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerFast,
        text: TextConfig,
        model: PreTrainedConfig,
        max_chunks: int | None = None,
    ) -> TextFormat:
        """Return the format for the settings, with the limits in the model's configuration."""
        config = model.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        return cls(
            tokenizer,
            prompt_format=text.prompt_format,
            max_length=min(text.max_length, positions or text.max_length),
            max_chunks=max_chunks,
            system_prompt=text.system_prompt,
            chat_template_kwargs=text.template_variables(),
            chat_date=text.chat_date,
            embeddings=config.vocab_size,
            positions=positions,
            prompt_template=text.prompt_template,
        )

    def __post_init__(self) -> None:
        settings = TextConfig(
            prompt_format=self.prompt_format,
            max_length=self.max_length,
            system_prompt=self.system_prompt,
            chat_template_kwargs=json.dumps(self.chat_template_kwargs or {}),
            chat_date=self.chat_date,
            prompt_template=self.prompt_template,
        )
        raise_if(settings.problems())
        if not self.tokenizer.is_fast:
            name = type(self.tokenizer).__name__
            raise InputError(
                Problem("tokenizer", name, "it does not provide character offsets", "use a fast tokenizer")
            )
        if self.prompt_format == "chat":
            self.check_template("prompt_format", "chat", "use prompt_format='base' or set tokenizer.chat_template")
        if not self.is_chat:
            fix = "use prompt_format='chat' and a tokenizer with a chat template, or leave it out"
            given = {name: getattr(self, name) for name in ("system_prompt", "chat_template_kwargs", "chat_date")}
            reason = "only a chat template reads it, and none is used"
            raise_if(Problem(name, value, reason, fix) for name, value in given.items() if value)
        elif self.chat_template_kwargs:
            raise_if(self.template.unread())

    def check_template(self, argument: str, value: object, fix: str) -> None:
        """Raise `InputError` for an argument that needs a chat template if the tokenizer has none."""
        if not self.tokenizer.chat_template:
            raise InputError(Problem(argument, value, "the tokenizer has no chat template", fix))

    @property
    def is_chat(self) -> bool:
        """Whether questions and answers go through the chat template."""
        if self.prompt_template is not None:
            return False
        return self.prompt_format == "chat" or (self.prompt_format == "auto" and bool(self.tokenizer.chat_template))

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template with the values of its variables."""
        return ChatTemplate(self.tokenizer, self.system_prompt, self.chat_template_kwargs or {}, self.chat_date)

    @cached_property
    def special_tokens(self) -> frozenset[int]:
        """The ids of all special tokens.

        `all_special_ids` has only tokens with a role, such as BOS, and often lacks the end-of-turn token of a template.
        """
        return frozenset(token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The ids of tokens that end an answer: EOS, and special tokens that the chat template writes after answers."""
        ends = {self.tokenizer.eos_token_id} - {None}
        if self.is_chat:
            [written] = _tokenise([_Text("template", self.template.ends, special=False)], self.tokenizer)
            ends |= self.special_tokens.intersection(written.ids)
        return frozenset(ends)


class _Text(NamedTuple):
    """The whole text of an example before tokenisation: plain text, or a prompt with its answer.

    Args:
        where: its name in error messages.
        text: the whole text.
        start: index of the first character after the prompt, where the answer begins.
        spans: the labelled parts of the text, as (start, stop).
        special: whether the tokenizer adds its special tokens. A chat template writes them itself.
        ended: whether the labelled spans already include the end of the answer.
        plain: whether it is plain text, which is split into chunks.
    """

    where: str
    text: str
    start: int = 0
    spans: Sequence[tuple[int, int]] = ()
    special: bool = True
    ended: bool = False
    plain: bool = False


class _Tokens(NamedTuple):
    """Token ids of a text, and the character index where each token ends (0 for tokens without text, such as BOS)."""

    ids: list[int]
    ends: list[int]


def encode_records(records: Sequence[Record], text_format: TextFormat, *, argument: str = "data") -> list[Example]:
    """Tokenise rows of question and answer, chat `messages` or plain `text`.

    Each answer to a question and each assistant turn of a conversation becomes one example, labelled on the answer and
    its end token. A plain text becomes one example per chunk of `max_length` tokens, for at most `max_chunks` chunks,
    labelled everywhere.

    Raises:
        InputError: a row lacks these keys, an answer is empty, or truncation to `max_length` removes all labels.
    """
    rows = enumerate(bar(records, desc=f"tokens of {argument}", unit=" rows"))
    texts = (text for index, row in rows for text in _texts_of(row, text_format, f"{argument}[{index}]"))
    examples = _encode(texts, text_format, argument)
    if not examples:
        raise InputError(Problem(argument, f"{len(records)} rows", "the text has no tokens", "give rows with text"))
    return examples


def encode_answers(
    pairs: Sequence[tuple[Asked, str]],
    text_format: TextFormat,
    *,
    argument: str = "answers",
    where: Sequence[str] | None = None,
) -> list[Example]:
    """Tokenise pairs of question (or context) and answer, each as one example labelled on the answer and its end token.

    Args:
        pairs: question or context, and answer.
        text_format: how they are tokenised.
        argument: the name of all pairs in messages.
        where: the name of each pair in error messages. Defaults to `argument` with its index.

    Raises:
        InputError: in the same cases as `encode_records`.
    """
    places = zip(where or map(f"{argument}[{{}}]".format, count()), pairs, strict=False)
    return _encode((_as_text(*pair, text_format, place) for place, pair in places), text_format, argument)


def encode_turns(asked: Asked, answer: str, text_format: TextFormat, where: str = "question") -> Example:
    """Tokenise a question (or context) and its answer, with labels on the answer and its end token.

    Args:
        asked: a question, or the turns of a conversation before the answer.
        answer: its text.
        text_format: how they are tokenised.
        where: the answer's name in error messages.
    """
    text = _as_text(asked, answer, text_format, where)
    [tokens] = _tokenise([text], text_format.tokenizer)
    return _labelled(text, tokens, text_format)


def encode_prompts(asked: Iterable[Asked], text_format: TextFormat) -> list[list[int]]:
    """Return the prompt tokens of each question: exactly those that `encode_turns` puts before the first label."""
    # The first character of an answer can change where the prompt ends, because a tokenizer may merge it with the last
    # character of the prompt. So the prompt is tokenised together with a letter in place of the answer.
    texts = [_as_text(one, "x", text_format, "question") for one in asked]
    tokens = _tokenise(texts, text_format.tokenizer)
    return [
        [token for token, end in zip(ids, ends, strict=True) if end <= text.start]
        for text, (ids, ends) in zip(texts, tokens, strict=True)
    ]


def encode_prompt(asked: Asked, text_format: TextFormat) -> list[int]:
    """Return the prompt tokens of one question: see `encode_prompts`."""
    return encode_prompts([asked], text_format)[0]


def encode_text(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the tokens of a text that is to be continued: with BOS if the tokenizer adds it, and without EOS."""
    return _tokenise([_Text("text", text)], tokenizer)[0].ids


def _encode(texts: Iterable[_Text], text_format: TextFormat, argument: str) -> list[Example]:
    """Tokenise texts in batches, and truncate the examples to the maximum length."""
    examples: list[Example] = []
    cut = 0
    texts = iter(texts)
    while batch := list(islice(texts, _BATCH)):
        for text, tokens in zip(batch, _tokenise(batch, text_format.tokenizer), strict=True):
            chunks = _chunks(tokens.ids, text_format) if text.plain else [_labelled(text, tokens, text_format)]
            for example in chunks:
                cut += _truncate(example, text_format, text.where)
                examples.append(example)
    if cut:
        length = text_format.max_length
        logger.warning("%s: %d of %d examples were cut to max_length=%d", argument, cut, len(examples), length)
    return examples


def _texts_of(row: Record, text_format: TextFormat, where: str) -> list[_Text]:
    """Return the text of each answer in a row, or the row's plain text unless it is blank."""
    if is_text(row):
        text = str(row["text"])
        return [_Text(where, text, plain=True)] if text.strip() else []
    answers = answers_of(row, where)
    if not answers:
        reason = "a row needs the keys question and answer, or messages, or text"
        raise InputError(Problem(where, sorted(row), reason, "rename the columns"))
    return [_as_text(one.asked, one.answer, text_format, one.where) for one in answers]


def _as_text(asked: Asked, answer: str, text_format: TextFormat, where: str) -> _Text:
    """Return prompt and answer as one text, because they are tokenised together."""
    if text_format.is_chat or not isinstance(asked, str):
        fix = "set tokenizer.chat_template or give rows of question and answer"
        text_format.check_template(f"{where}: messages", str(asked), fix)
        placed = text_format.template.place(asked, answer, where)
        found = _Text(where, placed.text, placed.start, placed.spans, special=False, ended=placed.marked)
    elif text_format.prompt_template is not None:
        prompt = text_format.prompt_template.replace(QUESTION, asked)
        text, start = prompt + answer, len(prompt.rstrip(" "))  # tokenizers merge a space with the next word
        found = _Text(where, text, start, [(start, len(text))])
    else:
        prompt = f"Question: {asked}\n"
        text = f"{prompt}Answer: {answer}"
        # TOFU's code masks only the question, so in its results for Phi "Answer:" is trained on, scored and generated.
        start = len(prompt if text_format.prompt_format == "tofu" else f"{prompt}Answer:")
        found = _Text(where, text, start, [(start, len(text))])
    return found if answer.strip() else found._replace(spans=())  # whitespace is nothing to learn or forget


def _tokenise(texts: Sequence[_Text], tokenizer: PreTrainedTokenizerFast) -> list[_Tokens]:
    """Return the tokens of each text. The tokenizer processes the texts in parallel."""
    found: dict[int, _Tokens] = {}
    for special in {text.special for text in texts}:
        places = [place for place, text in enumerate(texts) if text.special is special]
        encoded = tokenizer(
            [texts[place].text for place in places],
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        for place, ids, offsets in zip(places, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            # Some tokenizers add EOS and some do not. It is removed here, so that `_with_end` adds it exactly once.
            stop = len(ids) - (special and ids[-1:] == [tokenizer.eos_token_id])
            found[place] = _Tokens(ids[:stop], [end for _, end in offsets[:stop]])
    return [found[place] for place in range(len(texts))]


def _labelled(text: _Text, tokens: _Tokens, text_format: TextFormat) -> Example:
    """Return the example of a prompt and its answer."""
    # A tokenizer may merge characters across the boundary of prompt and answer. The end of a token decides where it
    # belongs.
    ids, ends = tokens
    labelled = [place for start, stop in text.spans for place, end in enumerate(ends) if start < end <= stop]
    if not (text.special or text.ended):
        labelled = _up_to_end_of_turn(labelled, ids, text_format.special_tokens)
    labels = [IGNORE_INDEX] * len(ids)
    for place in labelled:
        labels[place] = ids[place]
    # Tokens after the last label have no effect on the loss, so they are dropped.
    last = labelled[-1] if labelled else len(ids) - 1
    example: Example = {"input_ids": ids[: last + 1], "labels": labels[: last + 1]}
    ended = text.ended or (not text.special and ids[last : last + 1] and ids[last] in text_format.special_tokens)
    return example if ended else _with_end(example, text_format.tokenizer)


def _with_end(example: Example, tokenizer: PreTrainedTokenizerFast) -> Example:
    """Append EOS with a label, unless the last token is unlabelled."""
    end = tokenizer.eos_token_id
    if end is not None and example["labels"][-1:] != [IGNORE_INDEX]:
        example["input_ids"].append(end)
        example["labels"].append(end)
    return example


def _up_to_end_of_turn(span: list[int], ids: list[int], special: frozenset[int]) -> list[int]:
    """Drop what a template writes after the end-of-turn token, often a newline."""
    ends = [place for place, token in enumerate(span) if ids[token] in special]
    return span[: ends[-1] + 1] if ends else span


def _chunks(ids: list[int], text_format: TextFormat) -> Iterator[Example]:
    """Yield the chunks of a plain text, labelled everywhere."""
    whole = _with_end({"input_ids": ids, "labels": list(ids)}, text_format.tokenizer)["input_ids"]
    for start in range(0, len(whole), text_format.max_length)[: text_format.max_chunks]:
        chunk = whole[start : start + text_format.max_length]
        if len(chunk) > 1:  # a single token has no previous token to be predicted from
            yield {"input_ids": chunk, "labels": list(chunk)}


def _truncate(example: Example, text_format: TextFormat, where: str) -> bool:
    """Check the example, truncate it in place, and return whether it was longer. At least one label must remain."""
    if not count_labels([example]):
        raise InputError(Problem(where, "answer", "the answer has no tokens", "remove the row or give it an answer"))
    _check_embedded(example, text_format, where)
    length, max_length = len(example["input_ids"]), text_format.max_length
    del example["input_ids"][max_length:], example["labels"][max_length:]
    if not count_labels([example]):
        reason = f"the prompt alone has {max_length} tokens or more, so every label of {where} is cut off"
        fix = f"use at least {length}"
        if length > (text_format.positions or length):
            most = f"the model reads at most {text_format.positions} tokens"
            fix = f"shorten or remove that row: no max_length works, because {most}"
        raise InputError(Problem("max_length", max_length, reason, fix))
    return length > max_length


def _check_embedded(example: Example, text_format: TextFormat, where: str) -> None:
    largest = max(example["input_ids"])
    if text_format.embeddings is not None and largest >= text_format.embeddings:
        token = text_format.tokenizer.convert_ids_to_tokens(largest)
        reason = f"its token {token!r} has the id {largest}, and the model has {text_format.embeddings} embeddings"
        fix = "use the tokenizer that the model was trained with, or resize the model's embeddings and train them"
        raise InputError(Problem(where, token, reason, fix))


def count_labels(examples: Iterable[Example]) -> int:
    """Return the number of predicted tokens. The first token of an example is never predicted."""
    return sum(label != IGNORE_INDEX for example in examples for label in example["labels"][1:])
