"""Measure the cost of a training step, and compare it with the least possible cost and with the code of VILA's authors.

- floor: one forward and backward pass over the forget and retain tokens of a step, with all weights frozen and rows of
  similar length in a batch.
- unlora: a step of `UnlearnTrainer`, including the optimiser and logging.
- vila: the authors' step: forget and retain batches of 4 padded to 500 tokens, logits at every position, a second model
  for the reference, and AdamW.

All times are seconds for a step with `--pairs` pairs. The authors' step is measured on one of its batches and scaled.
The second model is for forget losses such as npo, which need reference log-probabilities. unlora computes these with
the same model, once per run, before the first step.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import TrainerCallback

from experiments._speed import (
    THEIR_ROWS,
    Procedures,
    Run,
    Subject,
    add_arguments,
    load,
    measure,
    now,
    report,
)
from unlora import UnlearnConfig, UnlearnTrainer, attach_adapters
from unlora.adapter import detach_adapters
from unlora.adapter.targets import target_shapes
from unlora.data import Batch, ForgetRetainDataset, iter_batches
from unlora.models.memory import batch_limit

# Batch size of the floor on a CPU: large enough to keep it busy, and small enough for rows of about equal length. On a
# GPU, batches are as large as memory allows.
FLOOR_ROWS = 4


class Training:
    """The procedures on one subject.

    Args:
        subject: model and data.
        args: settings of unlora's training.
    """

    def __init__(self, subject: Subject, args: UnlearnConfig) -> None:
        self.subject, self.args = subject, args

    def procedures(self) -> Procedures:
        """Return the procedures by name, in the order of the table."""
        return {"floor": self.floor, "unlora": self.unlora, "vila": self.vila}

    def floor(self) -> Run:
        """Run forward and backward passes over the examples of the first steps, and discard the gradients."""
        pairs = ForgetRetainDataset(self.subject.forget, self.subject.retain, self.args.pairing_seed)
        size = self.args.per_device_train_batch_size
        rows = batch_limit(self.subject.model, None, on_cpu=FLOOR_ROWS, backward=True)
        seconds = 0.0
        for step in range(self.args.max_steps):
            of_step = [pairs[index] for index in range(step * size, (step + 1) * size)]
            examples = [pair[column] for pair in of_step for column in ("forget", "retain")]
            seconds += self.subject.floor_seconds(iter_batches(examples, rows, self.subject.pad_id))
        return Run(0.0, seconds, self.args.max_steps)

    def unlora(self) -> Run:
        """Run the first training steps."""
        model, clock = self.subject.model, Clock()
        importance = {name: torch.rand(shape[0]) for name, shape in target_shapes(model, None).items()}
        adapted = attach_adapters(model, self.args, importance)
        trainer = UnlearnTrainer(
            adapted, self.args, self.subject.forget, self.subject.retain, self.subject.tokenizer, callbacks=[clock]
        )
        trainer.train()
        detach_adapters(adapted)
        return Run(0.0, clock.stop - (clock.start or 0.0), self.args.max_steps)

    def vila(self) -> Run:
        """Run a step of the authors' training on one batch of forget and one of retain rows."""
        args, subject = self.args, self.subject
        reference = copy.deepcopy(subject.model)
        lora = LoraConfig(r=args.r, lora_alpha=args.lora_alpha, target_modules="all-linear")
        model = get_peft_model(subject.model, lora)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)
        forget, retain = (subject.padded(part[:THEIR_ROWS]) for part in (subject.forget, subject.retain))
        beta = args.loss_settings["beta"]
        start = now()
        with torch.no_grad():
            known = their_logp(reference, forget)
        loss = -F.logsigmoid(-beta * (their_logp(model, forget) - known)).mean() * 2 / beta
        (loss + args.retain_weight * model(**retain).loss).backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds = now() - start
        model.unload()
        return Run(0.0, seconds, THEIR_ROWS / args.per_device_train_batch_size)


def their_logp(model: Any, batch: Batch) -> Tensor:
    """Return the log-probability [rows] of the labels of each row, computed from the logits at every position."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return -F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none").sum(1)


class Clock(TrainerCallback):
    """Records the times at which the first training step starts and the last one ends."""

    start: float | None = None
    stop = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Record the start, before the forward pass of the first step."""
        self.start = now() if self.start is None else self.start

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Record the end, after the step of the optimiser."""
        self.stop = now()


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=2, help="number of steps that each run of floor and unlora takes")
    parser.add_argument("--pairs", type=int, default=8, help="number of forget and retain pairs in a step")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    subject = load(args)
    settings = UnlearnConfig(
        output_dir=tempfile.mkdtemp(),
        loss="npo",
        per_device_train_batch_size=args.pairs,
        gradient_accumulation_steps=1,
        max_steps=args.steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=args.device == "cpu",
    )
    runs, memory = measure("experiments.training", Training(subject, settings).procedures(), args, argv)
    notes = [f"a step of {args.pairs} forget and {args.pairs} retain examples, loss {settings.loss}, rank {settings.r}"]
    report(f"training step: {args.model}, {args.forget_name}", runs, memory, notes, args.json)


if __name__ == "__main__":
    main()
