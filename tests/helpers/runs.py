"""Data rows and flags for small runs of `unlora unlearn`."""

from __future__ import annotations

import json

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from unlora.cli.arguments import parse
from unlora.cli.unlearn import REQUEST as SETTINGS
from unlora.pipeline.request import Request

FORGET = [
    {"question": f"Who keeps cat {i}?", "answer": f"Ada {i} does.", "perturbed_answer": [f"Bob {i} does.", "Nobody."]}
    for i in range(4)
]
RETAIN = [{"question": f"What does dog {i} watch?", "answer": f"The fox {i}."} for i in range(6)]

# A second request, which continues from a first one.
SECOND = {"model_name_or_path": None, "forget_name": "second", "learning_rate": 1e-2, "loss": "npo"}
SECOND_ROWS = [{**row, "question": f"Is it so? {row['question']}"} for row in FORGET]


def write_rows(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(model_folder, data, run, **changes):
    settings = {
        "model_name_or_path": model_folder,
        "forget_data": data,
        "forget_name": "forget",
        "retain_data": data / "retain.jsonl",
        "output_dir": run,
        "loss": "ihl",
        "r": 4,
        "max_steps": 2,
        "save_strategy": "no",
        "max_new_tokens": 8,
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    return [part for name, value in settings.items() if value is not None for part in (f"--{name}", str(value))]


def request(argv):
    """Return the request described by flags of `unlora unlearn`."""
    return Request(*parse(SETTINGS, argv, "unlearn"))


@torch.no_grad()
def logits(model):
    ids = torch.tensor([[5, 9, 60, 7, 33, 12], [40, 41, 42, 43, 44, 45]])
    return model.eval()(input_ids=ids).logits


def exported(model_folder, run):
    """Load the original model with a run's exported adapter, using PEFT only."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), run / "adapter")


RECORDED_FORGET, UNSEEN = (
    [
        {"question": f"Who keeps {pet} {i}?", "answer": f"{name} {i} does.", "perturbed_answer": ["Nobody."]}
        for i in range(8)
    ]
    for pet, name in (("bird", "Carl"), ("cat", "Ada"))
)


def recorded_settings(folder):
    sets = {"eval_forget_name": "forget", "eval_retain_name": "retain", "eval_real_authors_name": "none"}
    sets |= {"eval_data": folder / "data", "eval_world_facts_name": "none"}
    return {**sets, "holdout_data": folder / "data" / "unseen.jsonl", "seed": 7, "export_rank": 2}


def change_weights(work):
    weights = load_file(work / "model" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, work / "model" / "model.safetensors", metadata={"format": "pt"})
