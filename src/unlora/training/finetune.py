"""Ordinary fine-tuning: the model that will have to forget, and the retrained model that never knew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from unlora.adapter.export import check_unused
from unlora.common.errors import Problem
from unlora.data import Example, pad_batch, padding_id
from unlora.models.forward import causal_lm, labelled_tokens
from unlora.models.packing import packing
from unlora.settings.training import FinetuneSettings
from unlora.training.checkpoints import SafeArguments, SafeTrainer


@dataclass
class FinetuneConfig(FinetuneSettings, SafeArguments):
    """Fine-tuning: every field of `transformers.TrainingArguments`, and `FinetuneSettings`."""

    def lora(self) -> LoraConfig | None:
        """The adapter to train, if one is asked for."""
        if self.r is None:
            return None
        return LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules or "all-linear",
            task_type="CAUSAL_LM",
        )

    def problems(self) -> list[Problem]:
        """What is wrong, before anything is loaded."""
        return [*super().problems(), *self.adapter_problems()]


class FinetuneTrainer(SafeTrainer):
    """`Trainer` whose model computes no logits but those of labels."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """NLL of the batch's labels over the labels of all batches of an update."""
        if self.label_smoother is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        out = labelled_tokens(model, inputs)
        if num_items_in_batch is None:
            loss = -out.logp.mean()
        else:  # the labels of all processes, whose gradients are then averaged
            loss = -out.logp.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, out) if return_outputs else loss


def finetune(
    model: Any, tokenizer: Any, examples: Sequence[Example], args: TrainingArguments, lora: LoraConfig | None = None
) -> Path:
    """Trains `model` on `examples` and saves model and tokenizer.

    Args:
        model: a causal language model; changed in place.
        tokenizer: saved beside it.
        examples: from `encode_records`.
        args: settings; `output_dir` is where checkpoints go and the model ends up, and must be new unless the run is
            resumed (`resume_from_checkpoint`).
        lora: the adapter to train, which is merged into the weights at the end; None trains all weights.

    Returns:
        `output_dir`.
    """
    folder = Path(args.output_dir)
    if not args.resume_from_checkpoint:
        check_unused(folder, "output_dir")
    pad_id = padding_id(tokenizer)
    if lora is not None:
        model = get_peft_model(model, lora)
        if args.gradient_checkpointing:
            model.enable_input_require_grads()  # else re-entrant checkpoints give the layers no gradient, silently
    trainer = FinetuneTrainer(
        model=model,
        args=args,
        train_dataset=list(examples),
        data_collator=lambda rows: pad_batch(rows, pad_id),
        processing_class=tokenizer,
    )
    with packing(causal_lm(model)):
        trainer.train(resume_from_checkpoint=resume_point(args))
    if lora is not None:
        trainer.model = trainer.accelerator.unwrap_model(model).merge_and_unload()
    save_whole(trainer, folder)
    return folder


def save_whole(trainer: SafeTrainer, folder: Path) -> None:
    """Saves model and tokenizer into `folder`, beside the checkpoints; config.json, which makes it a model, last."""
    partial = folder / ".partial"
    trainer.save_model(str(partial))
    if trainer.args.should_save:
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, folder / file.name)
        partial.rmdir()


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
