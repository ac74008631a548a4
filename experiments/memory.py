"""Measure the peak CPU memory of extracting moments or of a training step, on a small Llama with random weights.

python -m experiments.memory extraction --hidden 512 --layers 8 --vocabulary 512

docs/scaling.md compares the results with the formulas given there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from experiments._speed import MIB, llama, peak
from unlora.data.padding import Batch
from unlora.importance import attach_probe, gradient_moments
from unlora.models.forward import labelled_tokens


def step_of(stage: str, args: argparse.Namespace) -> Callable[[Batch], None]:
    """Return a function that runs a batch of the stage, on a Llama with the adapter and its offset."""
    torch.manual_seed(0)
    heads = args.hidden // 64
    config = llama(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
    )
    model = attach_probe(AutoModelForCausalLM.from_config(config).eval(), LoraConfig(r=8, lora_alpha=16))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(batch: Batch) -> None:
        if stage == "extraction":
            gradient_moments(model, [batch])
        else:
            (-labelled_tokens(model, batch).logp.mean()).backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def make_batch(args: argparse.Namespace, examples: int, length: int) -> Batch:
    """Return a batch of random tokens, with labels on the second half of each example."""
    ids = torch.randint(2, args.vocabulary, (examples, length))
    labels = ids.clone()
    labels[:, : length // 2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def main() -> None:
    """Print the peak memory of the stage."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=["extraction", "training"])
    for name, default in {"hidden": 512, "layers": 8, "vocabulary": 512, "examples": 8, "length": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    step = step_of(args.stage, args)
    step(make_batch(args, 1, 8))  # warm-up: libraries allocate memory at their first call and keep it
    batch = make_batch(args, args.examples, args.length)
    print(f"{vars(args)}: {peak(lambda: step(batch), 'cpu') / MIB:.0f} MiB above the resting process")


if __name__ == "__main__":
    main()
