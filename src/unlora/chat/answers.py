"""Answers of the original and the unlearned model: one model in memory, with its adapter switched off or on."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Condition, Event, Thread

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList, TextIteratorStreamer

from unlora.adapter.offset import original_model
from unlora.common.errors import InputError, Problem, raise_if
from unlora.data import IGNORE_INDEX, Asked, Example, TextFormat, encode_answers
from unlora.data.encoding import encode_prompt
from unlora.evals.generation import generating, labelled_texts
from unlora.evals.scoring import check_positions, position_limit, score_tokens
from unlora.models.generation import generated_text, generation_config, prompt_example
from unlora.settings.checks import at_least, value_problems

SIDES = ("original", "unlearned")


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated.

    Args:
        max_new_tokens: the maximum length of the answer.
        temperature: 0 for greedy decoding, as in the evaluation; otherwise tokens are sampled.
    """

    max_new_tokens: int
    temperature: float = 0.0

    def problems(self) -> list[Problem]:
        """Return the problems of values that are out of range."""
        ranges = {
            "max_new_tokens": at_least(1, "an answer needs a token"),
            "temperature": at_least(0, "it is negative"),
        }
        return value_problems(self, ranges)


@dataclass(frozen=True)
class Scored:
    """The tokens of an answer, and the log-probability of each one, given the question and the tokens before it.

    Args:
        tokens: the text that each token adds.
        logp: {side: log-probabilities in nats, [tokens]}.
    """

    tokens: list[str]
    logp: dict[str, NDArray[np.float32]]

    def probability(self, side: str) -> float:
        """Return the probability of the answer, normalised for its length as in the evaluation: exp(mean log p)."""
        return float(np.exp(self.logp[side].mean()))


class _TokenStreamer(TextIteratorStreamer):
    """Iterate over the ids of generated tokens. The base class yields text, whose tokens could not be scored."""

    def put(self, value: Tensor) -> None:
        """Pass on one new token, [1]. The first call passes the prompt, [1, length], which is ignored."""
        if value.dim() == 1:
            self.text_queue.put(int(value))

    def end(self) -> None:
        """End the iteration."""
        self.text_queue.put(self.stop_signal)


class _FairLock:
    """A lock that threads acquire in the order in which they requested it, so that none of them starves."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._tickets = 0
        self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            ticket, self._tickets = self._tickets, self._tickets + 1
            self._changed.wait_for(lambda: self._serving == ticket)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()

    @property
    def contended(self) -> bool:
        """Whether another thread waits for the lock while one holds it."""
        return self._tickets > self._serving + 1


class SideBySide:
    """Ask both models. Several threads may use one instance: they take turns, token by token.

    Args:
        model: the original model with the run's adapter as its only adapter.
        text_format: how the run turns a question into a prompt.
        max_tokens: the maximum number of tokens of a question and its answer together.
        max_seconds: the time limit for both answers to a question.
    """

    def __init__(
        self, model: PeftModel, text_format: TextFormat, max_tokens: int = 4096, max_seconds: float = math.inf
    ) -> None:
        self.model = model
        self.text_format = text_format
        self.max_seconds = max_seconds
        self.longest = min(position_limit(model) or max_tokens, max_tokens)
        self._lock = _FairLock()

    def answers(self, question: Asked, sampling: Sampling) -> Generator[dict[str, list[int]], None, None]:
        """Yield {side: tokens of its answer} after every new token. The original model answers first.

        Closing the iterator stops the generation after the current token.

        Raises:
            InputError: the question is empty, or leaves the model no positions for the answer. Also raised at the end
                if the time limit was reached.
        """
        raise_if(sampling.problems())
        prompt = self._prompt(question)
        new = sampling.max_new_tokens
        check_positions(self.model, [prompt_example(prompt)], new, "max_new_tokens", new)
        self._check_length("max_new_tokens", new, len(prompt) + new)
        config = generation_config(new, self.text_format, sampling.temperature)
        tokens: dict[str, list[int]] = {side: [] for side in SIDES}
        deadline = time.monotonic() + self.max_seconds
        for side in SIDES:
            for token in self._stream(side, prompt, config, deadline):
                tokens[side].append(token)
                yield tokens
        if time.monotonic() > deadline:
            reason = f"the answers took more than {self.max_seconds:g} seconds, and were cut"
            raise InputError(Problem("max_new_tokens", new, reason, "use less, or start the chat with --max_seconds"))

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens, decoded as in the evaluation."""
        return generated_text(tokens, self.text_format).strip()

    def score(self, question: Asked, answer: str | Sequence[int]) -> Scored:
        """Return the log-probability of each token of an answer under both models.

        Args:
            question: the question, or the turns before the answer.
            answer: a text, which is scored with its end token, or generated tokens.

        Raises:
            InputError: the question or the answer is empty, or the model has too few positions for both.
        """
        prompt = self._prompt(question)
        if isinstance(answer, str):
            (example,) = encode_answers([(question, answer)], self.text_format, argument="answer")
        else:
            example = Example(input_ids=[*prompt, *answer], labels=[IGNORE_INDEX] * len(prompt) + list(answer))
        self._check_length("answer", f"{len(answer)} long", len(example["input_ids"]))
        logp = {}
        for side in SIDES:
            with self._as(side):
                logp[side] = score_tokens(self.model, [example], self.text_format, 1)[0].logp
        return Scored(labelled_texts(example, self.text_format.tokenizer), logp)

    def _prompt(self, question: Asked) -> list[int]:
        if isinstance(question, str) and not question.strip():
            raise InputError(Problem("question", question, "there is nothing to ask", "write a question"))
        return encode_prompt(question, self.text_format)

    def _check_length(self, argument: str, value: object, tokens: int) -> None:
        if tokens > self.longest:
            reason = f"question and answer may need {tokens} tokens, and may have {self.longest}"
            raise InputError(Problem(argument, value, reason, "shorten them, or start the chat with --max_tokens"))

    @contextmanager
    def _as(self, side: str) -> Iterator[None]:
        """Hold the lock, with the adapter switched off for the original side and on for the unlearned side."""
        with self._lock, nullcontext() if side == "unlearned" else original_model(self.model):
            yield

    def _stream(self, side: str, prompt: list[int], config: GenerationConfig, deadline: float) -> Iterator[int]:
        """Yield the generated tokens as they come, until the deadline.

        The generation has a thread of its own, because gradients are switched off per thread, and an iterator may be
        read from another thread for each token. Between two tokens, it lets other threads use the model.
        """
        streamer, closed, done = _TokenStreamer(self.text_format.tokenizer), Event(), Future[None]()

        def work() -> None:
            try:
                ids = torch.tensor([prompt], device=next(self.model.parameters()).device)
                with ExitStack() as turn:

                    def stop(ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
                        over = closed.is_set() or time.monotonic() > deadline
                        if self._lock.contended and not over:
                            turn.close()
                            turn.enter_context(self._as(side))
                        return torch.full((len(ids),), over, device=ids.device)

                    turn.enter_context(self._as(side))
                    settings = {"generation_config": config, "stopping_criteria": StoppingCriteriaList([stop])}
                    with generating(self.model) as core:
                        core.generate(ids, attention_mask=torch.ones_like(ids), streamer=streamer, **settings)
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)
            finally:
                streamer.end()  # `generate` does not end it if it fails

        worker = Thread(target=work, daemon=True)
        worker.start()
        try:
            yield from streamer
            done.result()
        finally:
            closed.set()
            worker.join()
