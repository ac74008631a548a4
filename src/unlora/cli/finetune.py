"""`unlora finetune`: a model on question/answer, chat or text records, all weights or LoRA."""

from __future__ import annotations

from dataclasses import dataclass, field

from unlora.cli.arguments import parse
from unlora.cli.output import Answer
from unlora.config import ModelConfig, TextConfig
from unlora.training import FinetuneSettings

EXAMPLE = (
    "unlora finetune --model_name_or_path base --train_data tofu --train_name full --output_dir full-model "
    "--learning_rate 1e-5 --num_train_epochs 5"
)


@dataclass
class TrainDataConfig(TextConfig):
    """What to fine-tune on."""

    train_data: str = field(default="", metadata={"help": "File, folder or hub dataset. Required."})
    train_name: str | None = field(default=None, metadata={"help": "Its configuration, such as full."})
    train_split: str = field(default="train", metadata={"help": "Its split; slices such as train[:160] work."})


SETTINGS, TRAINING = (ModelConfig, TrainDataConfig, FinetuneSettings), True


def run(argv: list[str]) -> Answer:
    """Fine-tunes; the result is the model's folder."""
    from unlora.data import TextFormat, encode_records, load_records
    from unlora.errors import InputError, Problem, raise_if
    from unlora.finetune import FinetuneConfig, finetune
    from unlora.models import load_model

    model_config, data, args = parse((ModelConfig, TrainDataConfig, FinetuneConfig), argv, "finetune", EXAMPLE)
    raise_if([*model_config.problems(), *data.problems(), *args.problems()])
    if model_config.on is not None:
        raise InputError(
            Problem("on", model_config.on, "fine-tuning moves all weights, not an adapter", "leave it out")
        )
    frozen = model_config.quantised or ("shard_base" if model_config.shard_base else None)
    if frozen:
        reason = "fine-tuning changes the weights, or merges an adapter into them"
        raise InputError(Problem(frozen, True, reason, "leave it out"))
    if not data.train_data:
        raise InputError(Problem("train_data", "", "no dataset is named", "give a file, a folder or a hub dataset"))
    rows = load_records(data.train_data, data.train_name, data.train_split, argument="train_data")
    model, tokenizer = load_model(model_config)
    text_format = TextFormat(tokenizer, data.prompt_format, data.max_length)
    examples = encode_records(rows, text_format, argument="train_data")
    return Answer({}, lambda: None, finetune(model, tokenizer, examples, args, args.lora()))
