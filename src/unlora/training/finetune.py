"""Ordinary fine-tuning, which produces the original model, and the retrained model that never saw the forget set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments, set_seed
from transformers.utils import CONFIG_NAME

from unlora.adapter.targets import is_everything, target_shapes
from unlora.common.distributed import add_columns, on_main
from unlora.common.errors import Problem, raise_if
from unlora.common.files import flush, new_folder
from unlora.common.locks import writing_to
from unlora.data import Example, pad_batch, padding_id
from unlora.data.encoding import count_labels
from unlora.models.forward import causal_lm, labelled_tokens, unwrapped
from unlora.models.hashes import weights_digest
from unlora.models.log_probabilities import upcast
from unlora.models.packing import packing
from unlora.runs.stages import Stages, json_sha256, tokenizer_sha256
from unlora.settings.training import FinetuneSettings
from unlora.training.arguments import SafeArguments, batch_problems, changed_arguments
from unlora.training.checkpoints import SafeTrainer
from unlora.training.parts import TrainerInParts, items_of


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
        """Return the problems of the settings that can be found before anything is loaded."""
        return [*super().problems(), *self.own_problems(), *self._evaluation_problems()]

    def _evaluation_problems(self) -> list[Problem]:
        given = {"eval_strategy": str(self.eval_strategy.value) != "no", "eval_on_start": self.eval_on_start}
        reason, fix = "fine-tuning has no evaluation set", "remove it, and evaluate checkpoints with `unlora evaluate`"
        return [Problem(name, getattr(self, name), reason, fix) for name, is_given in given.items() if is_given]


class _FinetuneTrainer(TrainerInParts):
    """A Trainer that computes logits only at labelled positions, which saves memory."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by the number of labels of the update

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> int:
        """Return the number of labels in all batches of an update, over all processes."""
        [labels] = add_columns([[count_labels(items_of(batch))] for batch in batch_samples])
        return int(labels)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> Any:
        """Return the NLL of the batch's labels, divided by the number of labels in all batches of the update."""
        assert num_items_in_batch is not None
        out, smoothing = labelled_tokens(model, inputs), self.args.label_smoothing_factor
        losses = -out.logp
        if smoothing:  # mix the label with the uniform distribution over the vocabulary, which has this weight
            losses = losses.lerp(-upcast(out.logits).log_softmax(-1).mean(-1), smoothing)
        # The labels are counted over all processes, and gradients are averaged over processes.
        loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
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
        examples: the training examples, from `encode_records`.
        args: the settings. Checkpoints and the final model are written to `output_dir`, which must be a new folder
            unless the run is resumed (`resume_from_checkpoint`). Resuming a finished run does nothing.
        lora: the adapter to train, which is merged into the weights at the end; None trains all weights.

    Returns:
        `output_dir`.

    Raises:
        InputError: incomplete batches are dropped and no batch is complete, the folder is in use, another process is
            writing to it, or the run was started with other settings, another model or other data.
    """
    folder = Path(args.output_dir)
    raise_if(batch_problems(args, len(examples)))
    with ExitStack() as stack:

        def start() -> Stages:
            stack.enter_context(writing_to(folder))
            contents = _contents(model, tokenizer, examples, args, lora)
            stages = Stages(folder, changed_arguments(args), contents, args.resume_from_checkpoint)
            stages.start()
            return stages

        stages = on_main(start)
        if not on_main(lambda: stages.are_finished(CONFIG_NAME)):
            files = _save_model(_train(model, tokenizer, examples, args, lora), folder)
            on_main(lambda: stages.finish(*files))
    return folder


def _contents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    args: TrainingArguments,
    lora: LoraConfig | None,
) -> dict[str, Any]:
    """Return {argument: hash or value} that identifies all inputs of the training."""
    weights = weights_digest(sorted(model.state_dict().items())).hexdigest()
    return {
        "model_name_or_path": [weights, tokenizer_sha256(tokenizer)],
        "train_data": json_sha256(list(examples)),
        "lora": lora and json_sha256(lora.to_dict()),
        "device": args.device.type,
        "num_processes": args.world_size,
    }


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    args: TrainingArguments,
    lora: LoraConfig | None,
) -> SafeTrainer:
    """Train all weights or an adapter, which is merged into the weights."""
    if lora is not None:
        set_seed(args.seed)  # for the random initialisation of the adapter
        if is_everything(lora.target_modules):  # PEFT's own choice includes layers on which LoRA has no effect
            lora.target_modules = list(target_shapes(model, None))
        model = get_peft_model(model, lora)
        if args.gradient_checkpointing:
            # Without this, reentrant checkpointing silently gives the adapter no gradient.
            model.enable_input_require_grads()
    trainer = _FinetuneTrainer(
        model=model,
        args=args,
        train_dataset=list(examples),
        data_collator=partial(pad_batch, pad_id=padding_id(tokenizer)),
        processing_class=tokenizer,
    )
    with packing(causal_lm(model)):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if lora is not None:
        trainer.model = unwrapped(model).merge_and_unload()
    return trainer


def _save_model(trainer: SafeTrainer, folder: Path) -> list[str]:
    """Save model and tokenizer in `folder`, next to the checkpoints, and return the names of their files.

    config.json is moved there last, because a folder counts as a model as soon as it contains this file.
    """
    partial = folder / ".model.partial"
    if trainer.args.should_save:
        new_folder(partial)
    trainer.save_model(str(partial))
    if not trainer.args.should_save:
        return []
    flush(partial)
    names = sorted((file.name for file in partial.iterdir()), key=lambda name: name == CONFIG_NAME)
    for name in names:
        os.replace(partial / name, folder / name)
    partial.rmdir()
    return names
