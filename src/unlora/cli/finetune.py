"""`unlora finetune`: fine-tune a model on questions, chats or texts, all weights or LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unlora.cli.output import Answer
from unlora.common.errors import Problem
from unlora.settings import DryRunConfig, FinetuneSettings, ModelConfig, TrainDataConfig

if TYPE_CHECKING:
    from unlora.training.finetune import FinetuneConfig

EXAMPLE = (
    "unlora finetune --model_name_or_path base --train_data tofu --train_name full --output_dir full-model "
    "--learning_rate 1e-5 --num_train_epochs 5"
)
FIRST = {
    "model and data": ("model_name_or_path", "train_data", "train_name", "prompt_format", "max_length", "output_dir"),
    "training": ("learning_rate", "num_train_epochs", "gradient_accumulation_steps", "r"),
}
SETTINGS = (ModelConfig, TrainDataConfig, FinetuneSettings, DryRunConfig)


def run(model_config: ModelConfig, data: TrainDataConfig, args: FinetuneConfig, mode: DryRunConfig) -> Answer:
    """Fine-tune the model. The result is its folder."""
    from unlora.cli.tables import print_forecast
    from unlora.common.distributed import together
    from unlora.common.errors import raise_if
    from unlora.common.progress import tell
    from unlora.data import TextFormat, encode_records, load_set
    from unlora.models.load import load_model
    from unlora.pipeline.forecast import finetune_forecast
    from unlora.runs.stages import check_start
    from unlora.training.arguments import changed_arguments
    from unlora.training.finetune import finetune

    raise_if([*model_config.problems(), *data.problems(), *args.problems()])
    raise_if(_frozen_problems(model_config))
    with together():  # no process may write before all of them have checked that the folder is free
        check_start(Path(args.output_dir), changed_arguments(args), args.resume_from_checkpoint)
    rows = load_set(data, "train")
    model, tokenizer = load_model(model_config)
    text_format = TextFormat.of(tokenizer, data, model.config)
    examples = encode_records(rows, text_format, argument="train_data")
    expected = finetune_forecast(model, examples, text_format, args)
    if mode.dry_run:
        return Answer(expected.as_json(), lambda: print_forecast(expected))
    tell(expected.announcement())
    return Answer({}, lambda: None, finetune(model, tokenizer, examples, args, args.lora()))


def _frozen_problems(model: ModelConfig) -> Iterator[Problem]:
    """Yield the problems of a model that cannot be fine-tuned: an adapter, or one with quantised or sharded weights."""
    from unlora.models.source import source_of

    if model.on is not None:
        yield Problem("on", model.on, "fine-tuning moves all weights, not an adapter", "leave it out")
        return
    if frozen := model.quantised or ("shard_base" if model.shard_base else None):
        yield Problem(frozen, True, "fine-tuning changes the weights, or merges an adapter into them", "leave it out")
    if source_of(model).adapter is not None:
        reason = "it is an adapter, and fine-tuning moves the weights of a whole model"
        fix = "merge it into its base first (model.merge_and_unload()), or name its base"
        yield Problem("model_name_or_path", model.model_name_or_path, reason, fix)
