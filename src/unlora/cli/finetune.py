"""`unlora finetune`: fine-tune a model on questions, chats or texts, all weights or LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unlora.cli.output import Answer
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
    from unlora.common.errors import InputError, Problem, raise_if
    from unlora.common.progress import tell
    from unlora.data import TextFormat, encode_records, load_set
    from unlora.models.load import load_model
    from unlora.pipeline.forecast import finetune_forecast
    from unlora.runs.stages import check_start
    from unlora.training.arguments import changed_arguments
    from unlora.training.finetune import finetune

    raise_if([*model_config.problems(), *data.problems(), *args.problems()])
    if model_config.on is not None:
        raise InputError(
            Problem("on", model_config.on, "fine-tuning moves all weights, not an adapter", "leave it out")
        )
    frozen = model_config.quantised or ("shard_base" if model_config.shard_base else None)
    if frozen:
        reason = "fine-tuning changes the weights, or merges an adapter into them"
        raise InputError(Problem(frozen, True, reason, "leave it out"))
    with together():  # no process may write before all of them have seen that the folder is free
        check_start(Path(args.output_dir), changed_arguments(args), args.resume_from_checkpoint)
    rows = load_set(data, "train")
    model, tokenizer = load_model(model_config)
    text_format = TextFormat.of(tokenizer, data, data.max_length)
    examples = encode_records(rows, text_format, argument="train_data")
    expected = finetune_forecast(model, examples, text_format, args)
    if mode.dry_run:
        return Answer(expected.as_json(), lambda: print_forecast(expected))
    tell(expected.announcement())
    return Answer({}, lambda: None, finetune(model, tokenizer, examples, args, args.lora()))
