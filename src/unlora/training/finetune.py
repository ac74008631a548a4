"""Ordinary fine-tuning, which makes the original model and the retrained model that never saw the forget set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from unlora.common.errors import Problem
from unlora.common.files import check_unused
from unlora.data import Example, pad_batch, padding_id
from unlora.models.forward import causal_lm, labelled_tokens
from unlora.models.packing import packing
from unlora.settings.training import FinetuneSettings
from unlora.training.arguments import SafeArguments
from unlora.training.checkpoints import SafeTrainer, checkpoint_to_resume


@dataclass
class FinetuneConfig(FinetuneSettings, SafeArguments):
    """Fine-tuning: every field of `transformers.TrainingArguments`, and `FinetuneSettings`."""

    def lora(self) -> LoraConfig | None:
        """Return the settings of the adapter to train, or None to train all weights."""
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
        """Return what is wrong with the settings, before anything is loaded."""
        return [*super().problems(), *self.own_problems()]


class _FinetuneTrainer(SafeTrainer):
    """A Trainer that computes logits at labelled positions only, which saves the memory of all the others."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the NLL of the batch's labels, divided by the number of labels in all batches of the update."""
        if self.label_smoother is not None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        out = labelled_tokens(model, inputs)
        if num_items_in_batch is None:
            loss = -out.logp.mean()
        else:  # it counts the labels of all processes, and their gradients will be averaged
            loss = -out.logp.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, out) if return_outputs else loss


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    args: TrainingArguments,
    lora: LoraConfig | None = None,
) -> Path:
    """Train `model` on `examples`, and save the model and the tokenizer.

    Args:
        model: a causal language model. It is changed in place.
        tokenizer: its tokenizer, which is saved with it.
        examples: what `encode_records` returned.
        args: settings. Checkpoints and the final model are written to `output_dir`, which must be a new folder unless
            the run is resumed (`resume_from_checkpoint`).
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
            # Without this, reentrant checkpointing silently gives the adapter no gradient.
            model.enable_input_require_grads()
    trainer = _FinetuneTrainer(
        model=model,
        args=args,
        train_dataset=list(examples),
        data_collator=lambda rows: pad_batch(rows, pad_id),
        processing_class=tokenizer,
    )
    with packing(causal_lm(model)):
        trainer.train(resume_from_checkpoint=checkpoint_to_resume(args))
    if lora is not None:
        trainer.model = trainer.accelerator.unwrap_model(model).merge_and_unload()
    _save_model(trainer, folder)
    return folder


def _save_model(trainer: SafeTrainer, folder: Path) -> None:
    """Save model and tokenizer in `folder`, next to the checkpoints.

    config.json is moved there last, because a folder counts as a model as soon as it contains this file.
    """
    partial = folder / ".partial"
    trainer.save_model(str(partial))
    if trainer.args.should_save:
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, folder / file.name)
        partial.rmdir()
