"""Measure unlora on a GPU in less than ten minutes, and save the results after each part.

The machine needs torch, transformers, peft, a wheel of unlora and this folder, but no network:

    python -m experiments.gpu --json out.json --small MODEL_FOLDER --data TOFU

- shape: a model with random weights in the shape of --model. Measures the importance and a training step, each relative
  to its floor (a forward and backward pass with frozen weights), the initialisation of the adapter, and a complete
  forget10 run: importance, initialisation and five epochs.
- small: `unlora finetune` and, with two seeds, `unlora unlearn` on a real small model, with their evaluations.

No part is started later than --seconds after the beginning. Without --data, the shape is measured on random tokens in
place of TOFU, and the small model is trained on the fictitious people of persona.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import release_memory

from experiments import _speed
from experiments._speed import Subject, make_tokenizer, now, random_model, tokens
from experiments.extraction import ADAPTER, SEED, Extraction
from experiments.training import Training
from unlora import UnlearnConfig, UnlearnTrainer, attach_adapters
from unlora.adapter import detach_adapters
from unlora.benchmarks.builtin.persona_data import generate
from unlora.cli import main as unlora
from unlora.common.files import atomic_path, write_jsonl
from unlora.data import IGNORE_INDEX, Example, TextFormat, encode_records, iter_batches, load_records
from unlora.importance.sampling import retain_sample
from unlora.runs.folder import EVALUATIONS, METRICS, RECORD
from unlora.settings import ImportanceConfig

# Number of rows of forget10 and retain90, their shortest and longest length in tokens of Llama-2's tokenizer, and the
# fraction of these tokens that belongs to the answer.
ROWS, LENGTHS, ANSWERED = (400, 3600), (35, 95), 0.7
PAIRS, EPOCHS = 32, 5


class Results:
    """The results so far, which are written to a file at each change.

    Args:
        path: the file.
        seconds: time limit after which no part is started.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.end, self.values = path, time.monotonic() + seconds, {}
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        self.add(device=device, torch=torch.__version__)

    def add(self, **values: Any) -> None:
        """Add values, and write the file."""
        self.values |= values
        with atomic_path(self.path) as partial:
            partial.write_text(json.dumps(self.values, indent=1) + "\n")

    def run(self, name: str, part: Callable[[], dict[str, Any]]) -> None:
        """Run a part if the time limit has not passed, and add its results and peak GPU memory."""
        if time.monotonic() > self.end:
            self.add(**{name: "left out: no time"})
            return
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            values = part()
        except Exception as error:  # an error must not lose the results of the other parts
            values = {"error": f"{type(error).__name__}: {error}"}
        if torch.cuda.is_available():
            values["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.add(**{name: values})
        print(name, json.dumps(values), flush=True)


def random_rows(count: int, vocabulary: int, seed: int) -> list[Example]:
    """Return examples of random tokens of about the lengths of TOFU's, with labels on the answer."""
    drawn, rows = random.Random(seed), []
    for _ in range(count):
        ids = [drawn.randrange(3, vocabulary) for _ in range(drawn.randint(*LENGTHS))]
        asked = round(len(ids) * (1 - ANSWERED))
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * asked + ids[asked:]})
    return rows


class Shape:
    """The parts that are measured on a model with random weights.

    Args:
        args: the flags of `main`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        model = random_model(args).eval()
        people = generate(0)
        rows = people["forget"], people["retain"]
        if args.data:
            rows = tuple(load_records(args.data, name, "train", argument="data") for name in ("forget10", "retain90"))
        tokenizer = make_tokenizer(rows)
        if args.data:
            parts = [encode_records(part, TextFormat(tokenizer, "base")) for part in rows]
        else:
            parts = [random_rows(count, len(tokenizer), seed) for seed, count in enumerate(args.rows)]
        self.subject = Subject(model, tokenizer, *parts)
        self.retain = retain_sample(parts[1], ImportanceConfig().retain_size(len(parts[0])), SEED)
        self.args, self.parameters = args, model.num_parameters()

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Return the parts by name."""
        return {"extraction": self.extraction, "start": self.start, "step": self.step, "forget10": self.forget10}

    def extraction(self) -> dict[str, Any]:
        """Measure the importance and its floor on a sample of the batches."""
        measured = Extraction(self.subject, self.retain, ImportanceConfig(), self.args.batches)
        measured.floor(), measured.unlora()  # warm-up: the first run of each also loads kernels
        runs = _speed.interleaved({"floor": measured.floor, "unlora": measured.unlora}, self.args.rounds)
        seconds = {name: min(run.sample for run in each) for name, each in runs.items()}
        sample = sum(map(tokens, measured.sample))
        values = {"tokens": sample, "share": measured.share, "batches": sum(map(len, measured.sample)), **seconds}
        rate = 4 * self.parameters * sample / seconds["floor"] / 1e12
        return values | {"ratio": seconds["unlora"] / seconds["floor"], "floor_tflops": rate}

    def start(self) -> dict[str, Any]:
        """Measure the initialisation of the adapter: a factorisation of every adapted layer."""
        measured = Extraction(self.subject, self.retain, ImportanceConfig(), 1)
        return {"seconds": measured.start().fixed}

    def step(self) -> dict[str, Any]:
        """Measure a training step with loss npo, and its floor."""
        training = Training(self.subject, self.settings(loss="npo", max_steps=2))
        training.floor(), training.unlora()  # warm-up
        seconds = {name: run().seconds for name, run in (("floor", training.floor), ("unlora", training.unlora))}
        return seconds | {"ratio": seconds["unlora"] / seconds["floor"]}

    def forget10(self) -> dict[str, Any]:
        """Measure importance, initialisation and five epochs with loss ihl, as `unlora unlearn` runs them."""
        subject, begun = self.subject, now()
        extraction = Extraction(subject, self.retain, ImportanceConfig(), 1)
        batches = (
            lambda part=slice(None), rows=rows: iter_batches(rows[part], extraction.size, subject.pad_id)
            for rows in (subject.forget, self.retain)
        )
        importance = extraction.importance(*batches)
        measured = now()
        args = self.settings(loss="ihl", num_train_epochs=EPOCHS)
        adapted = attach_adapters(subject.model, args, importance)
        started = now()
        trainer = UnlearnTrainer(adapted, args, subject.forget, subject.retain, subject.tokenizer)
        trainer.train()
        detach_adapters(adapted)
        ended, pairs = now(), EPOCHS * len(subject.forget)
        seen = EPOCHS * sum(len(row["input_ids"]) for row in subject.forget)
        seen += round(pairs * sum(len(row["input_ids"]) for row in subject.retain) / len(subject.retain))
        rate = 4 * self.parameters * seen / (ended - started) / 1e12
        stages = {"importance": measured - begun, "start": started - measured, "training": ended - started}
        return {**stages, "whole": ended - begun, "updates": trainer.state.global_step, "training_tflops": rate}

    def settings(self, **changes: Any) -> UnlearnConfig:
        """Return the settings of a training run that saves nothing."""
        common = {"r": ADAPTER.r, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        size = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": PAIRS // 8}
        use_cpu = self.args.device == "cpu"
        return UnlearnConfig(output_dir=tempfile.mkdtemp(), use_cpu=use_cpu, **{**common, **size, **changes})


def small_parts(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the parts on a real small model: fine-tuning on all rows, and two runs that unlearn a tenth of them."""
    data, names = args.data, ("full", "forget10", "retain90")
    if data is None:
        people = generate(0)
        data, names = folder / "data", ("full", "forget", "retain")
        for name, rows in {**people, "full": [*people["forget"], *people["retain"]]}.items():
            write_jsonl(data / f"{name}.jsonl", rows)
    common = ["--prompt_format", "base", "--disable_tqdm", "true", *(["--use_cpu"] if args.device == "cpu" else [])]
    original = folder / "original"
    train = ["--model_name_or_path", args.small, "--train_data", data, "--train_name", names[0], *args.finetune]
    yield "finetune", lambda: timed("finetune", [*train, *common, "--output_dir", original], original)
    rows = ["--forget_data", data, "--forget_name", names[1], "--retain_data", data, "--retain_name", names[2]]
    for seed in (0, 1):
        run = folder / f"seed-{seed}"
        flags = ["--model_name_or_path", original, *rows, "--seed", seed, *args.unlearn, *common, "--output_dir", run]
        yield f"unlearn seed {seed}", lambda flags=flags, run=run: timed("unlearn", flags, run)  # type: ignore[misc]


def timed(command: str, flags: Sequence[object], folder: Path) -> dict[str, Any]:
    """Run an unlora command, and return its exit code and seconds, for `unlearn` also its stage times and metrics."""
    begun = now()
    code = unlora([command, *map(str, flags)])
    values: dict[str, Any] = {"exit_code": code, "seconds": now() - begun}
    if (folder / RECORD).is_file():
        values["stages"] = json.loads((folder / RECORD).read_text())["times"]
        metrics = json.loads((folder / METRICS).read_text())
        values |= {name: metrics[name]["sets"] for name in EVALUATIONS if name in metrics}
    return values


def main(argv: Sequence[str] | None = None) -> None:
    """Run all parts, and write their results to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument(
        "--model", default="Llama-2-7B", choices=list(_speed.shapes()), help="name of the shape with random weights"
    )
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the model with random weights")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", help="folder of TOFU: <name>.jsonl")
    parser.add_argument("--rows", type=int, nargs=2, default=ROWS, help="forget and retain rows without --data")
    parser.add_argument("--batches", type=int, default=10, help="measured batches of the importance and its floor")
    parser.add_argument("--rounds", type=int, default=2, help="number of runs of the importance and of its floor")
    parser.add_argument("--small", help="folder of a real small model")
    finetune = ["--learning_rate", "5e-4"]
    parser.add_argument(
        "--finetune", type=str.split, default=finetune, help="flags of its `unlora finetune`, one string"
    )
    parser.add_argument("--unlearn", type=str.split, default=[], help="flags of its `unlora unlearn`, one string")
    parser.add_argument("--seconds", type=float, default=480, help="time limit after which no part is started")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    results = Results(args.json, args.seconds)
    shape = Shape(args)
    results.add(model=args.model, parameters=shape.parameters, dtype=args.dtype)
    for name, part in shape.parts().items():
        results.run(name, part)
    release_memory(shape.subject.model)
    del shape
    if args.small:
        with tempfile.TemporaryDirectory() as folder:
            for name, part in small_parts(args, Path(folder)):
                results.run(name, part)


if __name__ == "__main__":
    main()
