"""Ordinary fine-tuning: the model that will have to forget, and the retrained model that never knew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from unlora.adapter.export import check_unused
from unlora.checkpoints import SafeTrainer
from unlora.data import Example, pad_batch, padding_id


@dataclass
class FinetuneConfig(TrainingArguments):
    """Fine-tuning of all weights: `transformers.TrainingArguments` with TOFU's defaults (arXiv 2401.06121)."""

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the data."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Batches added up before an update."})
    logging_steps: float = field(default=20, metadata={"help": "Log the loss every so many updates."})


def finetune(model: Any, tokenizer: Any, examples: Sequence[Example], args: TrainingArguments) -> Path:
    """Trains all weights of `model` on `examples` and saves model and tokenizer.

    Args:
        model: a causal language model; changed in place.
        tokenizer: saved beside it.
        examples: from `encode_records`.
        args: settings; `output_dir` is where checkpoints go and the model ends up, and must be new unless the run is
            resumed (`resume_from_checkpoint`).

    Returns:
        `output_dir`.
    """
    folder = Path(args.output_dir)
    if not args.resume_from_checkpoint:
        check_unused(folder, "output_dir")
    pad_id = padding_id(tokenizer)
    trainer = SafeTrainer(
        model=model,
        args=args,
        train_dataset=list(examples),
        data_collator=lambda rows: pad_batch(rows, pad_id),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume_point(args))
    trainer.save_model()
    return folder


def resume_point(args: TrainingArguments) -> str | bool | None:
    """What `Trainer.train` takes: the named checkpoint, True for the last one of the run, or None.

    The command line gives a string; "true" means the last complete checkpoint of `output_dir`, or a new start where
    the run was killed before the first.
    """
    from transformers.trainer_utils import get_last_checkpoint

    wanted = args.resume_from_checkpoint
    if wanted and str(wanted).lower() == "true":
        folder = Path(args.output_dir)
        return get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return None if not wanted or str(wanted).lower() == "false" else wanted
