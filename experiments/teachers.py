"""Compare teachers by how close they are to a model that never saw the forget set, with forward passes only.

The predictions of each teacher for the tokens of the forget answers are compared with those of the retrained model:

    python experiments/teachers.py --original MODEL --retrained MODEL --forget FORGET.jsonl --retain RETAIN.jsonl

KL(retrained ‖ teacher) is in nats per token, over the teacher's 128 likeliest tokens and all others merged into one.
The probability is that of the true answers, as in TOFU, restricted to the tokens that are taught.

The teachers are `changed_names` with some or all of its parts, and two from the literature that read the true row: one
with smoothed attention only (arXiv 2603.01285), and one with noise on the embeddings of the question's tokens (arXiv
2406.07933), averaged over draws.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlora.data import IGNORE_INDEX, Example, TextFormat, encode_records, pad_batch, padding_id
from unlora.data.lessons import Lesson, with_others
from unlora.data.sources import load_records
from unlora.models.attention import smoothed_attention
from unlora.models.forward import labelled_tokens
from unlora.teachers import Teaching
from unlora.teachers.changed_names import teach
from unlora.teachers.drafts import common_start
from unlora.teachers.interface import lesson
from unlora.teachers.matching import labels_of


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, example: dict, pad_id: int) -> torch.Tensor:
    """Return the log-probabilities [labels, vocabulary] of an example's labelled tokens."""
    return labelled_tokens(model, pad_batch([example], pad_id)).logits.float().log_softmax(-1)


def distance(lesson: Lesson, retrained: torch.Tensor) -> torch.Tensor:
    """Return KL(retrained ‖ lesson) of each taught token, in nats."""
    own = with_others(retrained[lesson.places].gather(-1, lesson.ids))
    return (own.exp() * (own - lesson.logp)).sum(-1)


def smoothed(temperature: float, teaching: Teaching, examples: Sequence[Example]) -> Iterator[Lesson]:
    """Yield the original model's predictions for the true rows with smoothed attention."""
    for example in examples:
        with smoothed_attention(teaching.model, temperature):
            yield whole_lesson(example, log_probabilities(teaching.model, example, 0))


@torch.no_grad()
def blurred(noise: float, teaching: Teaching, examples: Sequence[Example], draws: int = 8) -> Iterator[Lesson]:
    """Yield the original model's predictions for the true rows with noise on the question's embeddings.

    Args:
        noise: standard deviation, as a multiple of the embeddings' root mean square.
        teaching: provides the original model and the seed.
        examples: the true rows. At least two are needed to tell the questions from the template.
        draws: number of draws of the noise over which the predicted probabilities are averaged.
    """
    generator = torch.Generator().manual_seed(teaching.seed)
    embed = teaching.model.get_input_embeddings()
    scale = noise * embed.weight.pow(2).mean().sqrt()
    prompts = [example["input_ids"][: first_label(example)] for example in examples]
    for row, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
        other = prompts[row - 1]  # the start and end that two prompts have in common belong to the template
        start, end = common_start(prompt, other), len(prompt) - common_start(prompt[::-1], other[::-1])
        inputs = embed(torch.tensor([example["input_ids"]])).repeat(draws, 1, 1)
        inputs[:, start:end] += scale * torch.randn(inputs[:, start:end].shape, generator=generator)
        logits = teaching.model(inputs_embeds=inputs).logits.float().log_softmax(-1)
        labelled = [place for place, label in enumerate(example["labels"]) if place and label != IGNORE_INDEX]
        mean = logits[:, [place - 1 for place in labelled]].logsumexp(0) - torch.tensor(draws).log()
        yield whole_lesson(example, mean)


def first_label(example: Example) -> int:
    """Return the index of an example's first labelled token."""
    return next(place for place, label in enumerate(example["labels"]) if label != IGNORE_INDEX)


def whole_lesson(example: Example, logp: torch.Tensor) -> Lesson:
    """Return a lesson for all labelled tokens of an example, given log-probabilities [labels, vocabulary]."""
    return lesson(torch.arange(len(logp)), logp, torch.tensor(labels_of([example])))


def changed(
    temperature: float, controls: int, drafts: bool, teaching: Teaching, examples: Sequence[Example]
) -> Iterator[Lesson]:
    """Yield the lessons of `changed_names` with all or some of its parts."""
    yield from (one.lesson for one in teach(teaching, temperature, controls, drafts)[: len(examples)])


TEACHERS: dict[str, Callable[[Teaching, Sequence[Example]], Iterator[Lesson]]] = {
    "smoothed attention, 2": partial(smoothed, 2.0),
    "smoothed attention, 6": partial(smoothed, 6.0),
    "blurred question, 3": partial(blurred, 3.0),
    "changed names": partial(changed, 1.0, 0, False),
    "and smoothed attention": partial(changed, 1.75, 0, False),
    "and similar questions": partial(changed, 1.0, 4, False),
    "and both": partial(changed, 1.75, 4, False),
    "and own answers about others, and ends without beginnings": partial(changed, 1.75, 4, True),
}


def main() -> None:
    """Print a line of JSON for each teacher and for the retrained model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("original", "retrained", "forget", "retain"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=64, help="maximum number of forget rows")
    args = parser.parse_args()
    original, retrained = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (args.original, args.retrained)
    )
    text_format = TextFormat(AutoTokenizer.from_pretrained(args.original))
    rows, retain = (load_records(path) for path in (args.forget, args.retain))
    rows = rows[: args.rows]
    examples = encode_records(rows, text_format)
    pad_id = padding_id(text_format.tokenizer)
    expected = [log_probabilities(retrained, example, pad_id) for example in examples]
    for name, teacher in TEACHERS.items():
        lessons = list(teacher(Teaching(original, text_format, rows, retain), examples))
        kl = [distance(lesson, own).mean() for lesson, own in zip(lessons, expected, strict=True)]
        likely = [lesson.true_logp.mean().exp() for lesson in lessons]
        found = {"kl": torch.stack(kl).mean(), "probability": torch.stack(likely).mean()}
        print(json.dumps({"teacher": name} | {key: round(value.item(), 3) for key, value in found.items()}), flush=True)
    true = [
        own.gather(-1, torch.tensor([[label] for label in labels_of([example])])).mean().exp()
        for own, example in zip(expected, examples, strict=True)
    ]
    print(json.dumps({"teacher": "retrained model", "probability": round(torch.stack(true).mean().item(), 3)}))


if __name__ == "__main__":
    main()
