"""Code shared by the speed measurements: models, data, interleaved timing, and peak memory in separate processes."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, PhiConfig, PreTrainedConfig

from unlora.benchmarks.builtin.persona_models import train_tokenizer
from unlora.data import IGNORE_INDEX, Batch, Example, TextFormat, encode_records, load_records, pad_batch, padding_id
from unlora.data.sources import Record
from unlora.importance.taps import tapped
from unlora.models.forward import labelled_tokens
from unlora.models.load import load_model
from unlora.settings import ModelConfig

MIB = 2**20
# Batch size of the authors' procedures, and the length in tokens to which they pad every row.
THEIR_ROWS, THEIR_LENGTH = 4, 500
# Vocabulary size of the tokenizer for models with random weights. It is trained on the data itself, and at this size
# splits a text into about as many tokens as the tokenizers of the real models.
VOCABULARY = 4000


def llama(**settings: Any) -> LlamaConfig:
    """Return the configuration of a Llama, by default in the shape of Llama-2-7B."""
    return LlamaConfig(**{"max_position_embeddings": 2048, **settings})


def shapes() -> dict[str, PreTrainedConfig]:
    """Return, by name, configurations of models that are run with random weights and need no download."""
    return {
        "tiny": llama(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
        ),
        "SmolLM2-135M": llama(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        ),
        "Phi-1.5": PhiConfig(
            vocab_size=51200, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=32
        ),
        "Llama-2-7B": llama(),
        "Llama-3-8B": llama(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8, rope_theta=5e5),
    }


@dataclass(frozen=True)
class Subject:
    """A model, its tokenizer, and the tokenised forget and retain sets."""

    model: Any
    tokenizer: Any
    forget: Sequence[Example]
    retain: Sequence[Example]

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return padding_id(self.tokenizer)

    def moved(self, batch: Batch) -> Batch:
        """Move a batch to the model's device."""
        return {name: values.to(self.model.device) for name, values in batch.items()}

    def padded(self, examples: Sequence[Example]) -> Batch:
        """Pad examples to `THEIR_LENGTH` tokens, as the authors do."""
        batch = pad_batch(examples, self.pad_id)
        gap = THEIR_LENGTH - batch["input_ids"].shape[1]
        fill = {"input_ids": self.pad_id, "attention_mask": 0, "labels": IGNORE_INDEX}
        return self.moved({name: F.pad(values, (0, gap), value=fill[name]) for name, values in batch.items()})

    def floor_seconds(self, batches: Iterable[Batch]) -> float:
        """Return the seconds of one forward and backward pass over the batches, with all weights frozen."""
        start = now()
        with tapped(self.model, []):
            for batch in batches:
                labelled_tokens(self.model, self.moved(batch)).logp.sum().backward()
        return now() - start


@dataclass(frozen=True)
class Run:
    """One measured run of a procedure.

    Args:
        fixed: seconds that do not depend on the amount of data.
        sample: seconds that the measured part of the data took.
        share: the measured fraction of the procedure; above 1, the number of times that it was repeated.
    """

    fixed: float
    sample: float
    share: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole procedure."""
        return self.fixed + self.sample / self.share


Procedures = Mapping[str, Callable[[], Run]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that the extraction and training measurements have in common."""
    known = ", ".join(shapes())
    parser.add_argument("--model", default="SmolLM2-135M", help=f"a model folder, or random weights: {known}")
    parser.add_argument("--data", default="locuslab/TOFU", help="TOFU: a hub dataset or a folder of <name>.jsonl")
    parser.add_argument("--forget_name", default="forget01")
    parser.add_argument("--retain_name", default="retain99")
    parser.add_argument("--prompt_format", default="base", help="base or chat")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each procedure, interleaved with the others")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="procedures to run (all if not given)")
    parser.add_argument("--no_memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)  # set in processes that measure peak memory


def load(args: argparse.Namespace) -> Subject:
    """Load the model and the data that the flags name."""
    transformers.utils.logging.disable_progress_bar()
    rows = [load_records(args.data, name, "train", argument="data") for name in (args.forget_name, args.retain_name)]
    if args.model in shapes():
        model, tokenizer = random_model(args), make_tokenizer(rows)
    else:
        model, tokenizer = load_model(ModelConfig(args.model, dtype=args.dtype))
        model = model.to(args.device)
        for weight in model.state_dict().values():
            weight.sum()  # memory-mapped weights are loaded on first access, which must not count as the procedure's
    text_format = TextFormat(tokenizer, args.prompt_format, THEIR_LENGTH)
    forget, retain = (encode_records(part, text_format) for part in rows)
    return Subject(model.eval(), tokenizer, forget, retain)


def random_model(args: argparse.Namespace) -> Any:
    """Create a model of a named shape with random weights, directly on its device."""
    torch.manual_seed(0)
    with torch.device(args.device):
        return AutoModelForCausalLM.from_config(shapes()[args.model], dtype=getattr(torch, args.dtype))


def make_tokenizer(rows: Sequence[Sequence[Record]]) -> Any:
    """Train a byte-level BPE tokenizer on the text of the data."""
    return train_tokenizer((f"{row['question']} {row['answer']}" for part in rows for row in part), VOCABULARY)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` evenly spaced items, or all of them if there are fewer."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def tokens(batches: Iterable[Batch]) -> int:
    """Return the number of tokens in the batches, including padding."""
    return sum(batch["input_ids"].numel() for batch in batches)


class Stopwatch:
    """Measures the seconds that a consumer spends on batches, excluding its work before and after the loop."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches unchanged, and add the time until the last one is processed to `seconds`."""
        start = now()
        yield from batches
        self.seconds += now() - start


def now() -> float:
    """Return the time in seconds, after waiting for the GPU to finish its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(procedures: Procedures, rounds: int) -> dict[str, list[Run]]:
    """Run all procedures in turn, `rounds` times, so that other load on the machine affects all of them alike."""
    runs: dict[str, list[Run]] = {name: [] for name in procedures}
    for _ in range(rounds):
        for name, procedure in procedures.items():
            runs[name].append(procedure())
    return runs


def peak(procedure: Callable[[], object], device: str) -> int:
    """Return the peak memory of a procedure in bytes, minus the memory in use before it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        procedure()
        return int(torch.cuda.max_memory_allocated() - before)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that Linux has recorded
    before = resident("VmRSS")
    procedure()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return a memory field of `/proc/self/status`, such as `VmRSS`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peaks(module: str, names: Iterable[str], argv: Sequence[str]) -> dict[str, int]:
    """Return the peak memory of each procedure in bytes, each measured in a process of its own."""
    found = {}
    for name in names:
        command = [sys.executable, "-m", module, *argv, "--peak_of", name]
        found[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return found


def report(
    title: str, runs: Mapping[str, Sequence[Run]], memory: Mapping[str, int], notes: Sequence[str], file: Path | None
) -> None:
    """Print a row for each procedure, with its time relative to the first two, and write all rows to `file`."""
    seconds = {name: statistics.median(run.seconds for run in each) for name, each in runs.items()}
    references = list(seconds)[:2]
    table = Table("procedure", "measured", "seconds", *(f"× {name}" for name in references), "peak memory", title=title)
    for name, value in seconds.items():
        share = statistics.median(run.share for run in runs[name])
        measured = f"{share:.1%}, scaled up" if share < 1 else f"mean of {share:g}"
        ratios = (f"{value / seconds[other]:.3g}" for other in references)
        peak_mib = f"{memory[name] / MIB:.0f} MiB" if name in memory else "-"
        table.add_row(name, measured, f"{value:.3g}", *ratios, peak_mib)
    console = Console(width=max(120, Console().width))
    console.print(table)
    for note in notes:
        console.print(note, markup=False)
    if file is not None:
        rows = [
            {"procedure": name, "seconds": seconds[name], "runs": [asdict(run) for run in runs[name]]}
            | ({"peak_bytes": memory[name]} if name in memory else {})
            for name in seconds
        ]
        file.write_text(json.dumps({"title": title, "notes": list(notes), "rows": rows}, indent=1) + "\n")


def measure(
    module: str, procedures: Procedures, args: argparse.Namespace, argv: Sequence[str]
) -> tuple[dict[str, list[Run]], dict[str, int]]:
    """Run the procedures selected by the flags, and return their runs and peak memory.

    With `--peak_of`, print the peak memory of that procedure in bytes and exit.
    """
    if args.peak_of is not None:
        print(peak(procedures[args.peak_of], args.device))
        raise SystemExit
    chosen = {name: run for name, run in procedures.items() if args.only is None or name in args.only}
    return interleaved(chosen, args.rounds), {} if args.no_memory else peaks(module, chosen, argv)
