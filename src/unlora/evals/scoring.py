"""What a model says: its scores of given answers, and its own answers. Batched by length, results in input order.

All leave the model as they found it: every module's training mode, and its generation settings. In a job of several
processes all of them call these, each runs its share, and all get the results of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig

from unlora.common.distributed import in_lockstep, merge, share, together
from unlora.common.errors import InputError, Problem, raise_if
from unlora.data.encoding import (
    IGNORE_INDEX,
    Example,
    TextFormat,
    count_labels,
    encode_records,
    encode_text,
    encode_turns,
    special_ids,
)
from unlora.data.padding import Batch, pad_batch, padding_id
from unlora.models.forward import LabelledTokens, causal_lm, labelled_tokens
from unlora.models.log_probabilities import upcast

Progress = Callable[[int], None]
T = TypeVar("T")
# Log-probabilities of the whole vocabulary are made for as many tokens at once as have this many numbers (64 MiB).
BLOCK = 2**24


@dataclass(frozen=True)
class TokenScores:
    """What a model says of one example's labelled tokens, given all before each; log is natural.

    Args:
        logp: [tokens] float32, log p of the label.
        mean: [tokens] float32, mean of log p(v) over v drawn from p, the model's prediction.
        std: [tokens] float32, its standard deviation.
        matches: [tokens] bool, whether the label is the likeliest token.
    """

    logp: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    matches: NDArray[np.bool_]


def answer_nll(
    model: nn.Module,
    questions_answers: Sequence[tuple[str, str]],
    text_format: TextFormat,
    batch_size: int,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Negative log-likelihood of each answer and its end token, given its question.

    Args:
        model: a causal LM, with or without adapters.
        questions_answers: pairs of question and answer.
        text_format: how they become tokens; answers are cut at its `max_length`, with a warning.
        batch_size: rows of a batch.
        progress: called after each batch with the number of pairs done so far.

    Returns:
        The sum over an answer's tokens in nats, and the number of those tokens, each [pairs].

    Raises:
        InputError: no pairs, an empty answer, or more tokens than the model has positions.
    """
    return example_nll(model, answer_examples(questions_answers, text_format), text_format, batch_size, progress)


def answer_examples(questions_answers: Sequence[tuple[str, str]], text_format: TextFormat) -> list[Example]:
    """The pairs as tokens, labelled on the answers and their end tokens; refused as in `answer_nll`."""
    if not questions_answers:
        raise InputError(Problem("questions_answers", "0 pairs", "there is nothing to score", "give at least one pair"))
    rows = [{"question": question, "answer": answer} for question, answer in questions_answers]
    return encode_records(rows, text_format, argument="questions_answers")


def example_nll(
    model: nn.Module,
    examples: Sequence[Example],
    text_format: TextFormat,
    batch_size: int,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """As `answer_nll`, of examples that are tokenised already: over their labelled tokens, each [examples]."""
    check_positions(model, examples, 0, "text_format.max_length", text_format.max_length)
    scores: dict[int, tuple[float, int]] = {}
    with together(), _evaluating(model):
        for chosen, batch in scoring_batches(model, examples, batch_size, text_format, "right", progress):
            scored = labelled_tokens(model, batch)
            pairs = zip((-scored.example_logp.double()).tolist(), scored.counts.tolist(), strict=True)
            scores |= dict(zip(chosen, pairs, strict=True))
    sums, tokens = zip(*of_all(scores), strict=True)
    return np.array(sums, dtype=np.float64), np.array(tokens, dtype=np.int64)


def token_nll(
    model: nn.Module,
    examples: Sequence[Example],
    text_format: TextFormat,
    batch_size: int,
    progress: Progress | None = None,
) -> list[NDArray[np.float64]]:
    """As `example_nll`, of each labelled token: for each example [tokens], in nats."""
    check_positions(model, examples, 0, "text_format.max_length", text_format.max_length)
    losses: dict[int, NDArray[np.float64]] = {}
    with together(), _evaluating(model):
        for chosen, batch in scoring_batches(model, examples, batch_size, text_format, "right", progress):
            scored = labelled_tokens(model, batch)
            parts = (-scored.logp).double().cpu().split(scored.counts.tolist())
            losses |= {place: part.numpy() for place, part in zip(chosen, parts, strict=True)}
    return of_all(losses)


def score_tokens(
    model: nn.Module,
    examples: Sequence[Example],
    text_format: TextFormat,
    batch_size: int,
    progress: Progress | None = None,
) -> list[TokenScores]:
    """Scores of every labelled token of each example; memorisation and most membership scores are made of them.

    The arguments are those of `example_nll`.

    Raises:
        InputError: as `check_examples`.
    """
    check_examples(model, examples, text_format)
    scores: dict[int, TokenScores] = {}
    with together(), _evaluating(model):
        for chosen, batch in scoring_batches(model, examples, batch_size, text_format, "right", progress):
            out = labelled_tokens(model, batch)
            columns = [column.cpu().split(out.counts.tolist()) for column in _token_columns(out)]
            for place, values in zip(chosen, zip(*columns, strict=True), strict=True):
                scores[place] = TokenScores(*(value.numpy() for value in values))
    return of_all(scores)


def _token_columns(out: LabelledTokens) -> list[Tensor]:
    """The fields of `TokenScores` for all tokens of a batch, a block of tokens at a time."""
    size = max(1, BLOCK // out.logits.shape[-1])
    blocks = zip(out.logits.split(size), out.targets.split(size), strict=True)
    return [torch.cat(parts) for parts in zip(*(_score_block(*block) for block in blocks), strict=True)]


def _score_block(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    logp = upcast(logits).log_softmax(-1)
    label = logp.gather(-1, targets[:, None])[:, 0]
    matches = logp.argmax(-1) == targets
    probability = logp.exp()
    logp.masked_fill_(probability == 0, 0)  # 0 · log 0 counts nothing
    mean = (probability * logp).sum(-1)
    std = logp.sub_(mean[:, None]).square_().mul_(probability).sum(-1).sqrt()
    return label.float(), mean.float(), std.float(), matches


def generate_answers(
    model: nn.Module,
    questions: Sequence[str],
    text_format: TextFormat,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """The model's greedy answer to each question, without special tokens and surrounding blanks.

    A model's own generation settings (sampling, penalties, beams) do not count: all models are compared by one rule.

    Args:
        model: a causal LM, with or without adapters.
        questions: what to ask.
        text_format: the prompt; it is the very beginning that `answer_nll` scores answers after.
        max_new_tokens: the longest answer; it ends earlier at one of the `end_tokens`.
        batch_size: rows of a batch.
        progress: called after each batch with the number of questions done so far.

    Raises:
        InputError: no questions, or prompt and answer may need more tokens than the model has positions.
    """
    prompts = [encode_prompt(question, text_format) for question in questions]
    return continue_prompts(model, prompts, text_format, max_new_tokens, batch_size, progress)


def continue_prompts(
    model: nn.Module,
    prompts: Sequence[list[int]],
    text_format: TextFormat,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """As `generate_answers`, after prompts that are tokenised already."""
    return [text.strip() for text in _generate(model, prompts, text_format, max_new_tokens, batch_size, progress)]


def continue_texts(
    model: nn.Module,
    texts: Sequence[str],
    text_format: TextFormat,
    max_new_tokens: int,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """How the model goes on after each text, greedily; as `generate_answers`, but without a prompt around the text.

    Special tokens are left out of what is returned, blanks are not. It ends at the `end_tokens` of `text_format`: the
    tokenizer's eos alone with the prompt format "base".
    """
    prompts = [encode_text(text, text_format.tokenizer) for text in texts]
    return _generate(model, prompts, text_format, max_new_tokens, batch_size, progress)


def _generate(
    model: nn.Module,
    prompts: Sequence[list[int]],
    text_format: TextFormat,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None,
) -> list[str]:
    _check_request(prompts, max_new_tokens)
    examples = [prompt_example(ids) for ids in prompts]
    check_positions(model, examples, max_new_tokens, "max_new_tokens", max_new_tokens)
    config = generation_config(max_new_tokens, text_format)
    texts: dict[int, str] = {}
    with together(), generating(model) as core:
        # Left padding, so that every row's answer begins in the same column.
        for chosen, batch in scoring_batches(model, examples, batch_size, text_format, "left", progress):
            inputs = {key: batch[key].to(core.device) for key in ("input_ids", "attention_mask")}
            rows = core.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
            for index, row in zip(chosen, rows, strict=True):
                texts[index] = generated_text(row, text_format)
    return of_all(texts)


def of_all(part: Mapping[int, T]) -> list[T]:
    """The results of all processes, in the order of the examples; `part` has those of this process by their places."""
    results = merge(part)
    return [results[place] for place in range(len(results))]


def generated_text(tokens: Sequence[int], text_format: TextFormat) -> str:
    """The text of generated tokens up to the first of the `end_tokens`, without special tokens."""
    stops = end_tokens(text_format)
    return decode(list(takewhile(lambda token: token not in stops, tokens)), text_format.tokenizer)


def prompt_example(ids: list[int]) -> Example:
    """Tokens that are seen and not scored."""
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * len(ids)}


def _check_request(prompts: Sequence[list[int]], max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise InputError(Problem("max_new_tokens", max_new_tokens, "an answer needs a token", "use at least 1"))
    if not prompts:
        raise InputError(Problem("questions", "0 questions", "there is nothing to ask", "give at least one"))


def generation_config(max_new_tokens: int, text_format: TextFormat, temperature: float = 0.0) -> GenerationConfig:
    """Greedy generation, or at a `temperature` above 0 draws from the model's whole distribution."""
    drawn = {"do_sample": True, "temperature": float(temperature), "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        **(drawn if temperature else {"do_sample": False}),
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(end_tokens(text_format)) or None,
        pad_token_id=padding_id(text_format.tokenizer),
    )


def encode_prompt(question: str, text_format: TextFormat) -> list[int]:
    """The tokens that stand before the first labelled token of `encode_turns`: what is seen before an answer begins."""
    encoded = encode_turns(question, "x", text_format)
    first = next(place for place, label in enumerate(encoded["labels"]) if label != IGNORE_INDEX)
    return encoded["input_ids"][:first]


def end_tokens(text_format: TextFormat) -> set[int]:
    """The tokens that end an answer: the tokenizer's eos, and special tokens that the chat template puts behind it."""
    tokenizer = text_format.tokenizer
    special = special_ids(tokenizer)
    ends = {tokenizer.eos_token_id} - {None}
    for token in reversed(encode_turns("x", "x", text_format)["labels"]):
        if token in special:
            ends.add(token)
        elif tokenizer.decode([token]).strip():  # the answer itself; only blanks may stand between its end tokens
            break
    return ends


def decode(tokens: list[int], tokenizer: Any) -> str:
    """The text of generated tokens, without special tokens."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def labelled_texts(example: Example, tokenizer: Any) -> list[str]:
    """The text that each predicted label adds, special tokens too; together they are the labelled text.

    A character of several tokens stands at the last of them.
    """
    labels = [label for label in example["labels"][1:] if label != IGNORE_INDEX]
    texts, shown = [], ""
    for count in range(1, len(labels) + 1):
        text = tokenizer.decode(labels[:count], clean_up_tokenization_spaces=False)
        whole = text if count == len(labels) else text.rstrip("\N{REPLACEMENT CHARACTER}")
        texts.append(whole[len(shown) :])
        shown = max(shown, whole, key=len)
    return texts


def scoring_batches(
    model: nn.Module,
    examples: Sequence[Example],
    batch_size: int,
    text_format: TextFormat,
    side: str = "right",
    progress: Progress | None = None,
) -> Iterator[tuple[list[int], Batch]]:
    """The places of this process's examples and their batch.

    The longest come first, so that too large a batch fails at once.
    """
    if batch_size < 1:
        raise InputError(Problem("batch_size", batch_size, "a batch needs a row", "use at least 1"))
    pad_id = padding_id(text_format.tokenizer)
    order = share(sorted(range(len(examples)), key=lambda place: -len(examples[place]["input_ids"])))
    for start in range(0, len(order), batch_size):
        chosen = list(order[start : start + batch_size])
        batch = pad_batch([examples[place] for place in chosen], pad_id, side)
        yield chosen, batch
        if progress is not None:
            progress(round((start + len(chosen)) * len(examples) / len(order)))


def check_examples(model: nn.Module, examples: Sequence[Example], text_format: TextFormat) -> None:
    """Refuses no examples, one without a label that is predicted, and more tokens than the model has positions."""
    if not examples:
        raise InputError(Problem("examples", "0 examples", "there is nothing to score", "give at least one"))
    reason, fix = "no label of it is predicted from anything", "leave it out"
    raise_if(
        Problem(f"examples[{place}]", f"{len(example['input_ids'])} tokens", reason, fix)
        for place, example in enumerate(examples)
        if not count_labels([example])
    )
    check_positions(model, examples, 0, "text_format.max_length", text_format.max_length)


def positions(model: nn.Module) -> int | None:
    """How many tokens the model can see at once; None if its configuration sets no limit."""
    config: Any = causal_lm(model).config
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def check_positions(model: nn.Module, examples: Sequence[Example], new: int, argument: str, value: int) -> None:
    """Refuses what would run past the model's last position: a crash, or text from positions it never saw."""
    limit = positions(model)
    longest = max(len(example["input_ids"]) for example in examples)
    if limit is None or longest + new <= limit:
        return
    room = limit - longest if new else limit
    reason = f"{longest} tokens of text and {new} to generate are more than the model's {limit} positions"
    fix = f"use at most {room}" if room > 0 else "shorten the questions"
    raise InputError(Problem(argument, value, reason, fix))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within, no gradients and no dropout. Each module gets its own mode back: some may have been in eval before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad() if in_lockstep() else torch.inference_mode():  # sharded weights outlive the pass
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def generating(model: nn.Module) -> Iterator[Any]:
    """Within, no gradients, no dropout and none of the model's own generation settings; yields what generates."""
    with _evaluating(model), _own_generation_settings_off(causal_lm(model)) as core:
        yield core


@contextmanager
def _own_generation_settings_off(core: Any) -> Iterator[Any]:
    """Within, the model has no generation settings: transformers fills what a given config leaves open from them."""
    own = core.generation_config
    core.generation_config = GenerationConfig()
    try:
        yield core
    finally:
        core.generation_config = own
