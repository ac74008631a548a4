"""Run folders and results made by hand, in which every number is known."""

from __future__ import annotations

import json
import math

import numpy as np
from safetensors.numpy import save_file

from unlora.common.files import write_json
from unlora.evals.log_format import TASKS

FILES = {"original": "eval_original.json", "unlearned": "eval_unlearned.json", "retrained": "eval_retrained.json"}
SIZE = 40
# Two sets of truth ratios without overlap, which the Kolmogorov-Smirnov test tells apart with certainty.
NEAR, FAR = np.linspace(0.5, 1.5, SIZE), np.linspace(0.05, 0.15, SIZE)


def column(values):
    return {str(index): value for index, value in enumerate(values)}


def task(probabilities, ratios, question="Who keeps cat {}?", said="{} does.", answer="Ada {} does."):
    """Return the log of an evaluation set with these answer probabilities, and truth ratios from one wrong answer."""
    count = len(probabilities)
    texts = [[f"Question: {question}\nAnswer:".format(i), said.format(i), answer.format(i)] for i in range(count)]
    return {
        "avg_gt_loss": column([-math.log(p) for p in probabilities]),
        "avg_paraphrased_loss": column([4 + math.log(r) for r in ratios]),
        "average_perturb_loss": column([[4.0]] * count),
        "rougeL_recall": column([0.5] * count),
        "generated_text": column(texts),
    }


def log(forget, ratios, retain=0.9, **texts):
    """Return a model's log, given the probability and truth ratios of the forget answers and the retain probability."""
    values = forget + np.linspace(-0.005, 0.005, len(ratios))
    found = {
        TASKS["forget"]: task(values, ratios, **texts),
        TASKS["retain"]: task(np.full(10, retain), np.full(10, 0.5), question="Who keeps dog {}?"),
    }
    found[TASKS["forget"]]["gt_tokens"] = column([["Ada", " does", ".<eos>"]] * len(ratios))
    found[TASKS["forget"]]["gt_token_loss"] = column([[-math.log(p), 0.0, 0.5] for p in values])
    return found


def judged(model_log, broken=0, given_away=0):
    """Add measures of the forget answers. The first `broken` are broken, and the last `given_away` reveal the fact."""
    columns = model_log[TASKS["forget"]]
    count = len(columns["avg_gt_loss"])
    columns["answer_measures"] = column([[9.0 + i, 9.0, 0.0] if i < broken else [1.0, 1.0, 0.0] for i in range(count)])
    columns["reference_measures"] = column([[1.0, 1.0, 0.0]] * count)
    columns["fact_recall"] = column([float(i >= count - given_away) for i in range(count)])
    return model_log


def logs(**changes):
    """Return the logs of a run that forgot well: distinguishable from the original, not from the retrained model."""
    return {"original": log(0.99, FAR), "unlearned": log(0.4, NEAR), "retrained": log(0.4, NEAR)} | changes


def make_run(folder, evaluated=None, settings=None, **files):
    """Write a run folder, and return its path. `files` are further JSON files by name without suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for model, content in (logs() if evaluated is None else evaluated).items():
        if content is not None:
            write_json(folder / FILES[model], content)
    steps = [{"step": s, "epoch": s / 10, "forget_loss": 2 - s / 40, "retain_loss": 0.1} for s in (10, 20, 30)]
    write_json(
        folder / "metrics.json", {"train": [*steps, {"train_runtime": 1.0, "step": 30}]} | files.pop("metrics", {})
    )
    values = {"model_name_or_path": "model", "init": "vila", "loss": "ihl", "learning_rate": 1e-4, "seed": 0}
    (folder / "config.yaml").write_text(json.dumps(values | (settings or {})))  # JSON is YAML
    names = [f"model.layers.{layer}.{module}" for layer in (0, 1) for module in ("mlp.up_proj", "self_attn.q_proj")]
    save_file({name: np.arange(1.0, 5.0 + i) for i, name in enumerate(names)}, folder / "importance.safetensors")
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)
    return folder


def membership(auc=0.5, error=0.05, retrained=None, original=1.0, names=("loss", "min_k_20")):
    """Return the results that `unlora membership` writes, without the scores."""

    def metrics(value):
        rows = {name: {"auc": value, "standard_error": error, "privleak": None} for name in names}
        return {"examples": {"forget": 40, "holdout": 30}, "membership": rows}

    others = {"original": original, "retrained": retrained}
    return {"metrics": metrics(auc), **{model: value and metrics(value) for model, value in others.items()}}


def attacks(gain=0.1, retrained=True, name="relearn", setting="20 %"):
    """Return the results of `unlora attack` for an attack that raises the forget probability by `gain`."""

    def models(value):
        ours = {"forget_probability": value, "forget_rougeL_recall": 0.5, "forget_probability_se": 0.01}
        theirs = ours | {"forget_probability": 0.4} if retrained else None
        difference = ours | {"forget_probability": value - 0.4} if retrained else None
        return {"original": ours, "unlearned": ours, "retrained": theirs, "unlearned_minus_retrained": difference}

    found = {"none": {"whole forget set": models(0.4)}, name: {setting: models(0.4 + gain)}}
    return {"attacks": {**found, "paraphrase": {"not available": "no paraphrased_question"}}}


def sampled(unlearned, retrained=0, facts=40):
    """Return the results of `unlora attack --attacks sampling`: one sample reveals half as many facts as 32."""

    def models(part):
        def values(count):
            share = part * count / facts
            return {"revealed": share, "revealed_low": share - 0.01, "revealed_high": share + 0.01, "facts": facts}

        theirs = None if retrained is None else values(retrained)
        difference = None if retrained is None else values(unlearned - retrained)
        ours = {"original": values(facts), "unlearned": values(unlearned)}
        return ours | {"retrained": theirs, "unlearned_minus_retrained": difference}

    return {"attacks": {"sampling": {"1 sample": models(0.5), "32 samples": models(1.0)}}}


def muse(verbatim=0.5, forget=0.4, retain=0.6, above=0):
    """Return the results of `evaluate --benchmark muse`, with forget scores `above` higher than holdout scores."""

    def private(shift):
        names = ("exact_memorisation", "extraction_strength", "loss", "min_k_20", "min_k_40")
        return {name: (np.arange(40.0) + shift).tolist() for name in names}

    rouge = {"verbmem": verbatim, "forget_qa": forget, "retain_qa": retain}
    scores = {name: {"rougeL": (mean + np.linspace(-0.1, 0.1, 40)).tolist()} for name, mean in rouge.items()}
    scores |= {"forget": private(above), "holdout": private(0)}
    return {"metrics": {"privleak": "not available"}, "scores": scores, "texts": {}}


def tasks(forget=0.3, retain=0.5, error=0.02):
    """Return the results that `unlora evaluate --benchmark wmdp` writes."""
    rows = {"wmdp_bio": forget, "wmdp_cyber": forget + 0.1, "mmlu": retain, "mmlu_law": 0.0}
    found = {name: {"acc": value, "acc_stderr": error, "n": 100, "version": 1} for name, value in rows.items()}
    return {"asked": ["wmdp_bio", "wmdp_cyber", "mmlu"], "tasks": found}
