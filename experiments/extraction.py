"""Measure the cost of VILA's importance, and compare it with the least possible cost and with the authors' code.

- floor: one forward and backward pass over the same batches, with all weights frozen.
- unlora: the importance as `unlora unlearn` measures it, from a given number of retain examples.
- start: the initialisation of the adapter (a factorisation of every layer).
- vila, fila: the procedures of the authors of VILA and FILA. They make ten passes over the forget set and as many
  random retain examples, in batches of 4 padded to 500 tokens, and accumulate the moments on the CPU after each batch.
  VILA uses the gradients of LoRA factors; FILA those of all linear weights, and computes gradients of all parameters.

Long procedures are measured on a part of the data and scaled up: floor and unlora by tokens, vila and fila by batches.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from experiments._speed import (
    THEIR_ROWS,
    Procedures,
    Run,
    Stopwatch,
    Subject,
    add_arguments,
    load,
    measure,
    now,
    report,
    spread,
    tokens,
)
from experiments.agreement import agreement
from unlora.adapter import attach_adapters, detach_adapters
from unlora.adapter.targets import target_shapes
from unlora.data import IGNORE_INDEX, Example, iter_batches
from unlora.importance import (
    INITIALISERS,
    Measurement,
    Moments,
    attach_probe,
    gradient_moments,
    relative_importance,
)
from unlora.importance.sampling import retain_sample
from unlora.models.memory import batch_limit, enable_checkpointing
from unlora.settings import ImportanceConfig

ADAPTER = LoraConfig(r=8, lora_alpha=16)
THEIR_PASSES = 10
SEED = 42
# Numbers of retain examples whose importance is compared with that of the largest number.
COUNTS = (40, 80, 160, 320, 400, 640, 1280, 2560)


class Extraction:
    """The procedures on one subject.

    Args:
        subject: model and data.
        retain: the retain examples of floor and unlora.
        config: settings of unlora's importance.
        batches: number of batches on which floor and unlora are measured.
        both_sets: whether the authors' procedures run on a batch of each set instead of the forget set only, which is
            needed to measure the memory of the moments of both.
    """

    def __init__(
        self,
        subject: Subject,
        retain: Sequence[Example],
        config: ImportanceConfig,
        batches: int,
        both_sets: bool = False,
    ) -> None:
        self.both_sets = both_sets
        self.subject, self.model, self.retain = subject, subject.model, retain
        self.config = config
        self.size = batch_limit(self.model, self.config.importance_batch_size, on_cpu=4, backward=True)
        whole = [list(iter_batches(part, self.size, subject.pad_id)) for part in (subject.forget, retain)]
        shares = [len(part) / sum(map(len, whole)) for part in whole]
        self.sample = [spread(part, max(1, round(batches * share))) for part, share in zip(whole, shares, strict=True)]
        self.share = sum(map(tokens, self.sample)) / sum(map(tokens, whole))

    def procedures(self) -> Procedures:
        """Return the procedures by name, in the order of the table."""
        return {
            "floor": self.floor,
            "unlora": self.unlora,
            "start": self.start,
            "vila": self.vila,
            "fila": self.fila,
        }

    def floor(self) -> Run:
        """Run forward and backward passes, and discard the gradients."""
        return Run(0.0, self.subject.floor_seconds(batch for part in self.sample for batch in part), self.share)

    def unlora(self) -> Run:
        """Measure the importance of every row."""
        watch, start = Stopwatch(), now()
        of_forget, of_retain = (lambda part=part: watch.watch(part) for part in self.sample)
        self.importance(of_forget, of_retain)
        return Run(now() - start - watch.seconds, watch.seconds, self.share)

    def importance(self, of_forget: Callable[[], Any], of_retain: Callable[[], Any]) -> dict[str, Tensor]:
        """Compute the importance as the pipeline does."""
        measurement = Measurement(self.model, ADAPTER, self.config, of_forget, of_retain)
        rows = INITIALISERS["vila"].row_importance(measurement)
        assert rows is not None
        return rows

    def start(self) -> Run:
        """Compute the weighted low-rank factors of every adapted layer."""
        importance = {name: torch.rand(shape[0]) for name, shape in target_shapes(self.model, None).items()}
        start = now()
        model = attach_adapters(self.model, ADAPTER, importance)
        seconds = now() - start
        detach_adapters(model)
        return Run(seconds, 0.0, 1.0)

    def theirs(self, measured: Mapping[str, nn.Parameter], model: nn.Module, centred: bool) -> Run:
        """Accumulate the moments of one forget batch and, if `both_sets`, of one retain batch, as the authors do.

        Args:
            measured: the parameters whose gradients are used, by name.
            model: the model that computes the loss.
            centred: whether the mean is needed in addition to the mean square.
        """
        parts = (self.subject.forget, self.retain) if self.both_sets else (self.subject.forget,)
        batches = [self.subject.padded(part[:THEIR_ROWS]) for part in parts]
        powers = (1, 2) if centred else (2,)
        sums: list[dict[tuple[str, int], Any]] = [
            dict.fromkeys(((n, p) for n in measured for p in powers), 0) for _ in batches
        ]
        start = now()
        for batch, total in zip(batches, sums, strict=True):
            model(**batch).loss.backward()
            count = (batch["labels"] != IGNORE_INDEX).sum()
            for name, parameter in measured.items():
                assert parameter.grad is not None
                for power in powers:
                    total[name, power] += (parameter.grad.pow(power) * count).cpu()
            model.zero_grad()
        seconds = now() - start
        per_pass = 2 * -(-len(self.subject.forget) // THEIR_ROWS)
        return Run(0.0, seconds, len(batches) / (THEIR_PASSES * per_pass))

    def vila(self) -> Run:
        """Measure the gradient moments of random LoRA factors."""
        model = get_peft_model(
            self.model, LoraConfig(r=ADAPTER.r, lora_alpha=ADAPTER.lora_alpha, target_modules="all-linear")
        )
        factors = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
        for parameter in factors.values():
            nn.init.normal_(parameter, std=self.config.sigma)
        run = self.theirs(factors, model, centred=True)
        model.unload()
        return run

    def fila(self) -> Run:
        """Measure the gradient mean squares of all linear weights, while every parameter gets a gradient."""
        self.model.requires_grad_(True)
        parameters = dict(self.model.named_parameters())
        weights = {name: parameters[f"{name}.weight"] for name in target_shapes(self.model, None)}
        return self.theirs(weights, self.model, centred=False)


def convergence(extraction: Extraction, subject: Subject, examples: int) -> Iterator[str]:
    """Yield lines with the agreement of row importances with those from `examples` retain examples."""
    config, size = extraction.config, extraction.size
    probe = attach_probe(subject.model, ADAPTER, config.sigma, SEED)

    def moments(part: Sequence[Example]) -> Moments:
        return gradient_moments(probe, iter_batches(part, size, subject.pad_id))

    def rows(of_retain: Moments) -> dict[str, Tensor]:
        return relative_importance(of_forget, of_retain, rows=True, **config.ratio())

    of_forget, sample = moments(subject.forget), retain_sample(subject.retain, examples, SEED)
    counts = [*(count for count in COUNTS if count < len(sample)), len(sample)]
    measured = (moments(sample[start:stop]) for start, stop in pairwise([0, *counts]))
    found = [rows(of_retain) for of_retain in accumulate(measured, together)]
    detach_adapters(probe)
    yield f"Spearman's correlation of row importances with those from {len(sample)} retain examples:"
    for count, importance in zip(counts, found, strict=True):
        yield f"{count:6d} examples: {agreement(importance, found[-1]):.4f}"


def together(one: Moments, other: Moments) -> Moments:
    """Return the moments over the examples of both."""
    tokens = one.tokens + other.tokens
    mean, second = (
        {name: theirs[name].lerp(value, one.tokens / tokens) for name, value in ours.items()}
        for ours, theirs in ((one.mean, other.mean), (one.second, other.second))
    )
    return Moments(mean, second, tokens, one.examples + other.examples)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.extraction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--retain_samples", type=int, help="number of retain examples of floor and unlora")
    parser.add_argument("--importance_batch_size", type=int, help="batch size of unlora and floor")
    parser.add_argument(
        "--gradient_checkpointing", action="store_true", help="use gradient checkpointing in all procedures"
    )
    parser.add_argument("--batches", type=int, default=30, help="number of measured batches of floor and unlora")
    parser.add_argument(
        "--converged",
        type=int,
        metavar="EXAMPLES",
        help="also show how well fewer retain examples agree with this number of them",
    )
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    subject = load(args)
    config = ImportanceConfig(importance_batch_size=args.importance_batch_size, retain_samples=args.retain_samples)
    if args.gradient_checkpointing:
        enable_checkpointing(subject.model)
        subject.model.train()
    extraction = Extraction(
        subject,
        retain_sample(subject.retain, config.retain_size(len(subject.forget)), SEED),
        config,
        args.batches,
        both_sets=args.peak_of is not None,
    )
    runs, memory = measure("experiments.extraction", extraction.procedures(), args, argv)
    notes = [f"{len(subject.forget)} forget and {len(extraction.retain)} retain examples of unlora and floor"]
    if args.converged:
        notes += convergence(extraction, subject, args.converged)
    report(f"extraction: {args.model}, {args.forget_name}", runs, memory, notes, args.json)


if __name__ == "__main__":
    main()
