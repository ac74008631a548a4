"""Generate a model's answers, greedily or by sampling. Prompts are batched by length, and results are in input order.

As in `scoring`, the model is left as it was found, and all processes of a distributed job must call these functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from unlora.common.distributed import together
from unlora.common.errors import InputError, Problem
from unlora.data.conversations import Asked
from unlora.data.encoding import IGNORE_INDEX, Example, TextFormat, encode_prompts
from unlora.data.padding import Batch
from unlora.evals.progress import Progress
from unlora.evals.scoring import CPU_ROWS, check_positions, evaluating, of_all, run_batches
from unlora.models.generation import generated_text, generation_config, prompt_example, without_own_settings
from unlora.models.memory import batch_limit


def generate_answers(
    model: nn.Module,
    questions: Sequence[Asked],
    text_format: TextFormat,
    max_new_tokens: int = 200,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Return the model's greedy answer to each question, without special tokens and surrounding whitespace.

    The model's own generation settings (sampling, penalties, beams) are ignored, so that all models are compared by the
    same rule.

    Args:
        model: a causal LM, with or without adapters.
        questions: [questions], each a text or the turns of a conversation before an answer.
        text_format: how questions become prompts. Answers are scored after the same prompts.
        max_new_tokens: the maximum length of an answer. Generation stops earlier at one of the format's `end_tokens`.
        batch_size: maximum number of questions in a batch. None fills the memory of a GPU.
        progress: called after each batch with the number of questions answered so far.

    Raises:
        InputError: no questions, or a prompt and its answer may need more tokens than the model has positions.
    """
    prompts = encode_prompts(questions, text_format)
    answers = continue_prompts(model, prompts, text_format, max_new_tokens, batch_size, progress)
    return [answer.strip() for answer in answers]


def continue_prompts(
    model: nn.Module,
    prompts: Sequence[list[int]],
    text_format: TextFormat,
    max_new_tokens: int = 200,
    batch_size: int | None = None,
    progress: Progress | None = None,
    temperature: float = 0.0,
) -> list[str]:
    """Return the model's continuation of each tokenised prompt, without special tokens but with whitespace.

    Decoding is greedy, or samples from all tokens if the `temperature` is above 0. The other arguments are those of
    `generate_answers`.
    """
    if max_new_tokens < 1:
        reason = "an answer has at least one token"
        raise InputError(Problem("max_new_tokens", max_new_tokens, reason, "use at least 1"))
    if not prompts:
        raise InputError(Problem("questions", "0 questions", "there is nothing to ask", "give at least one"))
    examples = [prompt_example(ids) for ids in prompts]
    check_positions(model, examples, max_new_tokens, "max_new_tokens", max_new_tokens)
    config = generation_config(max_new_tokens, text_format, temperature)
    texts: dict[int, str] = {}
    limit = batch_limit(model, batch_size, on_cpu=CPU_ROWS, new_tokens=max_new_tokens)
    with together(), generating(model) as core:

        def add(places: list[int], batch: Batch) -> None:
            inputs = {key: batch[key].to(core.device) for key in ("input_ids", "attention_mask")}
            rows = core.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
            texts.update({place: generated_text(row, text_format) for place, row in zip(places, rows, strict=True)})

        # Prompts are padded on the left, so that all answers of a batch begin at the same position.
        run_batches(add, examples, limit, text_format, "left", progress)
    return of_all(texts)


def labelled_texts(example: Example, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the text of each predicted label, including special tokens. Joined, these are the labelled text.

    A character that spans several tokens belongs to the last of them.
    """
    labels = [label for label in example["labels"][1:] if label != IGNORE_INDEX]
    texts, shown = [], ""
    for count in range(1, len(labels) + 1):
        text = tokenizer.decode(labels[:count], clean_up_tokenization_spaces=False)
        whole = text if count == len(labels) else text.rstrip("\N{REPLACEMENT CHARACTER}")
        texts.append(whole[len(shown) :])
        shown = max(shown, whole, key=len)
    return texts


@contextmanager
def generating(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Disable gradients, dropout and the model's own generation settings; yield the module that can generate."""
    with without_own_settings(model) as core, evaluating(model):
        yield core
