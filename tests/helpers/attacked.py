"""A small finished run, for tests of attacks and of chat."""

from __future__ import annotations

from helpers.runs import write_rows
from unlora.cli import main

FORGET = [
    {"question": f"Who keeps cat {i}?", "answer": f"Ada {i} does.", "paraphrased_question": f"Whose cat is {i}?"}
    for i in range(6)
]
RETAIN = [{"question": f"What does dog {i} watch?", "answer": f"The fox {i}."} for i in range(4)]


def unlearn(folder, model, forget, **changes):
    data = {
        "forget_data": write_rows(folder / "forget.jsonl", forget),
        "retain_data": write_rows(folder / "retain.jsonl", RETAIN),
    }
    settings = {"max_steps": 2, "learning_rate": 1e-2, "r": 4, "save_strategy": "no", "max_new_tokens": 8}
    settings |= {"model_name_or_path": model, "output_dir": folder / "run", "use_cpu": True, "disable_tqdm": True}
    flags = [part for name, value in (data | settings | changes).items() for part in (f"--{name}", str(value))]
    assert main(["unlearn", *flags]) == 0
    return folder / "run"
