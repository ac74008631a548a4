"""Score how likely given answers are under a model. Examples are batched by length, and results are in input order.

All functions leave the model as they found it, including the training mode of each module. In a distributed job, all
processes must call these functions. Each scores its share of the examples, and all get the results of all examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn

from unlora.adapter.fused import fused_adapters
from unlora.common.distributed import in_lockstep, merge, share, together
from unlora.common.errors import InputError, Problem, raise_if
from unlora.data.batching import BatchLimit
from unlora.data.conversations import Asked
from unlora.data.encoding import Example, TextFormat, count_labels, encode_answers
from unlora.data.padding import Batch, padding_id
from unlora.evals.progress import Progress
from unlora.models.batches import run_in_batches
from unlora.models.forward import LabelledTokens, causal_lm, labelled_tokens, unwrapped
from unlora.models.log_probabilities import upcast
from unlora.models.memory import batch_limit

T = TypeVar("T")
# The log-probabilities of the whole vocabulary are computed in blocks of at most this many numbers (64 MiB).
BLOCK = 2**24
# The default batch size on a CPU.
CPU_ROWS = 32


@dataclass(frozen=True)
class TokenScores:
    """The model's predictions of one example's labelled tokens, each given all tokens before it, in nats.

    Args:
        logp: [tokens] float32, log p of the label.
        mean: [tokens] float32, mean of log p(v) over tokens v drawn from the prediction p.
        std: [tokens] float32, standard deviation of log p(v).
        matches: [tokens] bool, whether the label is the most likely token.
    """

    logp: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    matches: NDArray[np.bool_]


def answer_examples(questions_answers: Sequence[tuple[Asked, str]], text_format: TextFormat) -> list[Example]:
    """Tokenise pairs of a question and an answer, with labels on the answers and their end tokens.

    Raises:
        InputError: no pairs, or an answer without tokens.
    """
    if not questions_answers:
        raise InputError(Problem("questions_answers", "0 pairs", "there is nothing to score", "give at least one pair"))
    return encode_answers(questions_answers, text_format, argument="questions_answers")


def example_nll(
    model: nn.Module,
    examples: Sequence[Example],
    text_format: TextFormat,
    batch_size: int | None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the negative log-likelihood of each example's labels.

    Args:
        model: a causal LM, with or without adapters.
        examples: tokenised examples.
        text_format: its tokenizer defines the padding.
        batch_size: maximum number of examples in a forward pass. None fills the memory of a GPU.
        progress: called after each batch with the number of examples scored so far.

    Returns:
        The sum over an example's labelled tokens in nats, [examples], and the number of these tokens, [examples].

    Raises:
        InputError: as `check_examples`.
    """
    losses = token_nll(model, examples, text_format, batch_size, progress)
    return np.array([nll.sum() for nll in losses]), np.array([len(nll) for nll in losses])


def token_nll(
    model: nn.Module,
    examples: Sequence[Example],
    text_format: TextFormat,
    batch_size: int | None,
    progress: Progress | None = None,
) -> list[NDArray[np.float64]]:
    """Return the negative log-likelihood of each labelled token in nats, [tokens] for each example.

    The arguments and errors are those of `example_nll`.
    """

    def losses(out: LabelledTokens) -> list[NDArray[np.float64]]:
        return [part.numpy() for part in (-out.logp).double().cpu().split(out.counts.tolist())]

    return _score_batches(losses, model, examples, text_format, batch_size, progress)


def score_tokens(
    model: nn.Module,
    examples: Sequence[Example],
    text_format: TextFormat,
    batch_size: int | None,
    progress: Progress | None = None,
) -> list[TokenScores]:
    """Return the scores of each example's labelled tokens, which memorisation and membership are computed from.

    The arguments are those of `example_nll`.

    Raises:
        InputError: as `check_examples`.
    """

    def scores(out: LabelledTokens) -> list[TokenScores]:
        columns = [column.cpu().split(out.counts.tolist()) for column in _token_columns(out)]
        return [TokenScores(*(value.numpy() for value in values)) for values in zip(*columns, strict=True)]

    return _score_batches(scores, model, examples, text_format, batch_size, progress)


def _score_batches(
    score: Callable[[LabelledTokens], Iterable[T]],
    model: nn.Module,
    examples: Sequence[Example],
    text_format: TextFormat,
    batch_size: int | None,
    progress: Progress | None,
) -> list[T]:
    """Apply `score` to the model's output for each batch, and return its results for all examples."""
    check_examples(model, examples, text_format)
    limit = batch_limit(model, batch_size, on_cpu=CPU_ROWS)
    scores: dict[int, T] = {}
    with together(), evaluating(model):

        def add(places: list[int], batch: Batch) -> None:
            scores.update(zip(places, score(labelled_tokens(model, batch)), strict=True))

        run_batches(add, examples, limit, text_format, "right", progress)
    return of_all(scores)


def _token_columns(out: LabelledTokens) -> list[Tensor]:
    """Return the fields of `TokenScores` for all tokens of a batch, each [tokens], computed block by block."""
    size = max(1, BLOCK // out.logits.shape[-1])
    blocks = zip(out.logits.split(size), out.targets.split(size), strict=True)
    return [torch.cat(parts) for parts in zip(*(_score_block(*block) for block in blocks), strict=True)]


def _score_block(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    logp = upcast(logits).log_softmax(-1)
    label = logp.gather(-1, targets[:, None])[:, 0]
    matches = logp.argmax(-1) == targets
    probability = logp.exp()
    logp.masked_fill_(probability == 0, 0)  # 0 · log 0 is 0 in an expectation, and NaN in floats
    mean = (probability * logp).sum(-1)
    std = logp.sub_(mean[:, None]).square_().mul_(probability).sum(-1).sqrt()
    return label.float(), mean.float(), std.float(), matches


def of_all(part: Mapping[int, T]) -> list[T]:
    """Return the results of all processes in the order of the examples, given this process's results by index."""
    results = merge(part)
    return [results[place] for place in range(len(results))]


def run_batches(
    run: Callable[[list[int], Batch], None],
    examples: Sequence[Example],
    limit: BatchLimit,
    text_format: TextFormat,
    side: str = "right",
    progress: Progress | None = None,
) -> None:
    """Call `run` with this process's examples in batches of similar length, each with the indices of its examples.

    The longest examples come first, so that a batch that is too large for the memory fails at once. Its examples are
    then run in smaller batches.
    """
    order = share(sorted(range(len(examples)), key=lambda place: -len(examples[place]["input_ids"])))

    def run_share(places: range, batch: Batch) -> None:
        run([order[place] for place in places], batch)

    def report(done: int) -> None:
        if progress is not None:
            # A process only knows about its own share. The others are about as far.
            progress(round(done * len(examples) / len(order)))

    own, pad_id = [examples[place] for place in order], padding_id(text_format.tokenizer)
    run_in_batches(run_share, own, limit, pad_id, side, report)


def check_examples(model: nn.Module, examples: Sequence[Example], text_format: TextFormat) -> None:
    """Raise `InputError` for no examples, an example without a predicted label, or one longer than the model allows."""
    if not examples:
        raise InputError(Problem("examples", "0 examples", "there is nothing to score", "give at least one"))
    raise_if(
        Problem(f"examples[{place}]", f"{len(example['input_ids'])} tokens", "it has no predicted label", "remove it")
        for place, example in enumerate(examples)
        if not count_labels([example])
    )
    check_positions(model, examples, 0, "text_format.max_length", text_format.max_length)


def position_limit(model: nn.Module) -> int | None:
    """Return how many tokens the model can process at once, or None if its configuration sets no limit."""
    limit: int | None = getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None)
    return limit


def check_positions(model: nn.Module, examples: Sequence[Example], new: int, argument: str, value: int) -> None:
    """Raise `InputError` if an example and `new` generated tokens need more positions than the model has.

    Some models would crash, and others would use positions that they were never trained on.

    Args:
        model: a causal LM, with or without adapters.
        examples: tokenised examples.
        new: number of tokens that are generated after each example.
        argument: the user's argument that is too large, for the error message.
        value: its value.
    """
    limit = position_limit(model)
    longest = max(len(example["input_ids"]) for example in examples)
    if limit is None or longest + new <= limit:
        return
    room = limit - longest if new else limit
    reason = f"{longest} tokens of text and {new} to generate are more than the model's {limit} positions"
    fix = f"use at most {room}" if room > 0 else "shorten the questions"
    raise InputError(Problem(argument, value, reason, fix))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Disable gradients and dropout, and run all adapters of a layer as one."""
    inner = unwrapped(model)
    adapters = fused_adapters(inner, training=False) if isinstance(inner, PeftModel) else nullcontext()
    # Sharded weights stay gathered after the forward pass, and must not be inference tensors when training goes on.
    with without_dropout(model), adapters, torch.no_grad() if in_lockstep() else torch.inference_mode():
        yield


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Disable dropout. At the end, restore the mode of each module, since modules may have different modes."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
