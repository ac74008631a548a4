"""The settings of published results, by name. Each has the content of a YAML file for `--config`.

VILA's settings come from its released code (arXiv 2508.21300). Its authors tuned the learning rate, the retain weight
and the loss's own settings for each model, split and loss; everything else is shared. TOFU's settings are those of its
released fine-tuning code (arXiv 2401.06121).

Until May 2026 VILA's trainer of ihl on TOFU multiplied the retain loss by λ twice (issue 2 of its repository, fixed
since), so that a configured λ acted as λ². Which version produced the paper's tables is not known. `...-ihl` has the
configured λ, as in the present code, and `...-ihl-squared` has λ², as in the earlier code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """A published configuration.

    Args:
        settings: names and values of flags.
        about: its purpose, and the flags that the user has to add.
    """

    settings: dict[str, Any]
    about: str


# Model -> loss -> (learning rate, retain weight and, for npo, beta) for each of forget01, forget05 and forget10.
_TOFU_TUNED = {
    "llama2-7b": {
        "gd": ((7e-5, 0.7), (1e-4, 1.8), (5e-5, 1.6)),
        "ihl": ((2e-4, 0.9), (1e-4, 1.3), (1e-4, 1.3)),
        "npo": ((2e-4, 0.7, 0.3), (1e-4, 1.5, 0.5), (1e-4, 1.5, 0.5)),
    },
    "phi-1.5": {
        "gd": ((2e-4, 1.1), (4e-5, 1.9), (7e-5, 1.1)),
        "ihl": ((2e-4, 1.4), (9e-5, 1.3), (1e-4, 0.8)),
        "npo": ((3e-5, 1.1, 0.2), (3e-5, 1.5, 0.4), (5e-5, 1.8, 0.3)),
    },
}
# Loss -> its name here (VILA's NPO for WMDP averages over tokens), and the same numbers.
_WMDP_TUNED = {"gd": ("gd", (8e-5, 1.6)), "ihl": ("ihl", (3e-5, 1.0)), "npo": ("npo_mean", (1e-5, 1.1, 0.02))}
# Forget split of TOFU -> retain split, updates (5 epochs in batches of 32), and updates of warm-up (1 epoch).
_TOFU_SPLITS = {"forget01": ("retain99", 6, 1), "forget05": ("retain95", 31, 6), "forget10": ("retain90", 62, 12)}
_TITLES = {"llama2-7b": "Llama-2-7B-chat", "phi-1.5": "Phi-1.5"}
_PROMPTS = {"llama2-7b": "chat", "phi-1.5": "tofu"}

_VILA = {
    "dtype": "bfloat16",
    "init": "vila",
    "sigma": 0.05,
    "importance_seed": 42,
    "moments_per": "batch",
    "forget_passes": 10,
    "probe_offset": False,
    "smoothing": "per_token",
    "epsilon": 1e-5,
    "normalised": False,
    "r": 8,
    "lora_alpha": 16,
    "lr_scheduler_type": "linear",
}
_VILA_TOFU = {
    **_VILA,
    "forget_data": "locuslab/TOFU",
    "retain_data": "locuslab/TOFU",
    "eval_data": "locuslab/TOFU",
    "max_length": 500,
    "importance_batch_size": 4,
    "weight_decay": 0.01,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "seed": 42,
}
# One epoch over the first 512 tokens of each of 500 texts.
_VILA_WMDP = {
    **_VILA,
    "model_name_or_path": "HuggingFaceH4/zephyr-7b-beta",
    "forget_split": "train[:500]",
    "retain_data": "Salesforce/wikitext",
    "retain_name": "wikitext-2-raw-v1",
    "retain_split": "test",
    "max_length": 512,
    "max_chunks": 1,
    "min_characters": 51,
    "importance_batch_size": 1,
    "warmup_steps": 12,
    "weight_decay": 0.0,
    "max_steps": 125,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "seed": 3,
}
_TOFU_FINETUNING = {
    "train_data": "locuslab/TOFU",
    "train_name": "full",
    "max_length": 500,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "bf16": True,
    "save_strategy": "no",
    "seed": 42,
}
_ALL_WEIGHTS = {"dtype": "float32", "weight_decay": 0.01, "num_train_epochs": 5, "warmup_steps": 0.2}
_PHI = {"model_name_or_path": "microsoft/phi-1_5", "prompt_format": "tofu"}
_LLAMA = {
    "model_name_or_path": "NousResearch/Llama-2-7b-chat-hf",
    "prompt_format": "chat",
    "gradient_checkpointing": True,
}
_LORA = {
    "dtype": "bfloat16",
    "weight_decay": 0.0,
    "num_train_epochs": 10,
    "warmup_steps": 0.1,
    "r": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
}


def published() -> dict[str, Published]:
    """Return all configurations by name."""
    return dict([*_fine_tuning(), *_vila_tofu(), *_vila_wmdp()])


def _fine_tuning() -> Iterator[tuple[str, Published]]:
    kinds = {
        "tofu-llama2-7b-lora": (
            "Llama-2-7B-chat with LoRA, merged at the end",
            {**_LLAMA, **_LORA, "learning_rate": 1e-4},
        ),
        "tofu-llama2-7b": ("Llama-2-7B-chat, all weights", {**_LLAMA, **_ALL_WEIGHTS, "learning_rate": 1e-5}),
        "tofu-phi-1.5": ("Phi-1.5, all weights", {**_PHI, **_ALL_WEIGHTS, "learning_rate": 2e-5}),
    }
    for name, (title, own) in kinds.items():
        about = f"`unlora finetune` on TOFU: {title}. For the retrained model of forget10, add --train_name retain90"
        yield name, Published({**_TOFU_FINETUNING, **own}, about)


def _vila_tofu() -> Iterator[tuple[str, Published]]:
    for model, losses in _TOFU_TUNED.items():
        for split, (retain, steps, warmup) in _TOFU_SPLITS.items():
            of_split = {
                "forget_name": split,
                "retain_name": retain,
                "eval_forget_name": f"{split}_perturbed",
                "prompt_format": _PROMPTS[model],
                "max_steps": steps,
                "warmup_steps": warmup,
            }
            for loss, tuned in losses.items():
                numbers = tuned[list(_TOFU_SPLITS).index(split)]
                about = (
                    f"`unlora unlearn` on TOFU: {split}, {_TITLES[model]}, {loss}. Add --model_name_or_path MODEL, "
                    "fine-tuned on TOFU"
                )
                settings = {**_VILA_TOFU, **of_split, **_loss(loss, *numbers)}
                yield f"vila-{model}-{split}-{loss}", Published(settings, about)
                if loss == "ihl":
                    squared = {**settings, "retain_weight": round(settings["retain_weight"] ** 2, 4)}
                    about += ". The retain weight is squared, as in VILA's code until May 2026"
                    yield f"vila-{model}-{split}-{loss}-squared", Published(squared, about)


def _vila_wmdp() -> Iterator[tuple[str, Published]]:
    about = (
        "`unlora unlearn` on WMDP: Zephyr-7B, {}. Add --forget_data FORGET.jsonl: both of WMDP's forget corpora "
        "(bio is available on request), shuffled, one {{'text': ...}} per line"
    )
    for loss, (name, numbers) in _WMDP_TUNED.items():
        yield f"vila-zephyr-7b-wmdp-{loss}", Published({**_VILA_WMDP, **_loss(name, *numbers)}, about.format(name))


def _loss(name: str, learning_rate: float, retain_weight: float, beta: float | None = None) -> dict[str, Any]:
    own = {} if beta is None else {"loss_kwargs": {"beta": beta}}
    return {"loss": name, "learning_rate": learning_rate, "retain_weight": retain_weight, **own}
