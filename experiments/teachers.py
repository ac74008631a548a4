"""Which teacher is closest to a model that never saw the forget set? Forward passes only.

Each teacher's predictions of the forget answers' tokens are compared with those of the retrained model:

    python experiments/teachers.py --original MODEL --retrained MODEL --forget FORGET.jsonl --retain RETAIN.jsonl

KL is in nats per token, over the teacher's 128 likeliest tokens and all others together. The probability is that of
the true answers, as in TOFU, over the tokens that are taught.
"""

from __future__ import annotations

import argparse
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlora.data import TextFormat, encode_records, pad_batch, padding_id
from unlora.data.lessons import Lesson, with_others
from unlora.data.sources import load_records
from unlora.models.forward import labelled_tokens
from unlora.teachers import Teaching
from unlora.teachers.changed_names import teach

# The temperature of the attention scores, and the number of similar questions.
VARIANTS = {
    "changed names": (1.0, 0),
    "and smoothed attention": (1.75, 0),
    "and similar questions": (1.0, 4),
    "and both": (1.75, 4),
}
WITH_ANSWERS = "and its own answers about others"


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, example: dict, pad_id: int) -> torch.Tensor:
    """Return the log-probabilities [labels, vocabulary] of an example's labelled tokens."""
    return labelled_tokens(model, pad_batch([example], pad_id)).logits.float().log_softmax(-1)


def distance(lesson: Lesson, retrained: torch.Tensor) -> torch.Tensor:
    """Return KL(retrained ‖ lesson) of each taught token, in nats."""
    own = with_others(retrained[lesson.places].gather(-1, lesson.ids))
    return (own.exp() * (own - lesson.logp)).sum(-1)


def main() -> None:
    """Print one line for each teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("original", "retrained", "forget", "retain"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=64, help="forget rows to look at")
    args = parser.parse_args()
    original, retrained = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (args.original, args.retrained)
    )
    text_format = TextFormat(AutoTokenizer.from_pretrained(args.original))
    rows, retain = (load_records(path) for path in (args.forget, args.retain))
    rows = rows[: args.rows]
    pad_id = padding_id(text_format.tokenizer)
    examples = encode_records(rows, text_format)
    expected = [log_probabilities(retrained, example, pad_id) for example in examples]
    for name, (temperature, controls) in {**VARIANTS, WITH_ANSWERS: VARIANTS["and both"]}.items():
        taught = teach(Teaching(original, text_format, rows, retain), temperature, controls, name == WITH_ANSWERS)
        lessons = [lesson for _, lesson in taught[: len(examples)]]
        kl = [distance(lesson, own).mean() for lesson, own in zip(lessons, expected, strict=True)]
        likely = [lesson.true_logp.mean().exp() for lesson in lessons]
        found = {"kl": torch.stack(kl).mean(), "probability": torch.stack(likely).mean()}
        print(json.dumps({"teacher": name} | {key: round(value.item(), 3) for key, value in found.items()}), flush=True)
    true = [
        own.gather(-1, torch.tensor([[label] for label in example["labels"][1:] if label != -100])).mean().exp()
        for own, example in zip(expected, examples, strict=True)
    ]
    print(json.dumps({"teacher": "retrained model", "probability": round(torch.stack(true).mean().item(), 3)}))


if __name__ == "__main__":
    main()
