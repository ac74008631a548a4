"""Run one request, from its data to the report. This is the only module that knows the order of the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import yaml
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from unlora.adapter import attach_adapters, compression, export_adapter
from unlora.common.distributed import main_only
from unlora.common.files import write_json, write_jsonl, write_text
from unlora.data.sources import Record
from unlora.evals import Log, summarise
from unlora.models.load import load_adapter, load_model
from unlora.pipeline.evaluation import evaluate_in_run, evaluate_in_training, samples, trained_on
from unlora.pipeline.forecast import Forecast, announce, forecast
from unlora.pipeline.importance import importance_for
from unlora.pipeline.job import Job
from unlora.pipeline.prepare import prepare
from unlora.pipeline.request import Request
from unlora.pipeline.stages import describe_job, locked, start
from unlora.report.page import write_report
from unlora.runs.folder import ADAPTER, CONFIG, EVALUATIONS, METRICS, RECORD, REPORT, SAMPLES
from unlora.runs.forgotten import write_forgotten
from unlora.runs.record import Clock, write_record
from unlora.teachers import TEACHERS, Teaching
from unlora.training.stopping import StopWhenUnseen
from unlora.training.trainer import UnlearnTrainer


@dataclass(frozen=True)
class Result:
    """The result of a run: its folder, the metrics of the original and the unlearned model, and the unlearned model."""

    folder: Path
    metrics: dict[str, Any]
    model: PreTrainedModel

    def _repr_html_(self) -> str:
        """Return the run's report, which a notebook shows in a frame."""
        page = escape((self.folder / REPORT).read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" sandbox style="width:100%;height:900px;border:0"></iframe>'


def unlearn(
    request: Request, sets: Mapping[str, Sequence[Record]] | None = None, retrained_log: Log | None = None
) -> Result:
    """Run one request: importance, training, export, evaluation, report.

    Args:
        request: all settings.
        sets: the rows to evaluate, as for `unlora.evals.evaluate`. Defaults to the sets that the request names.
        retrained_log: log of the retrained model. Defaults to the one that the request names.

    Raises:
        InputError: the input is invalid. This is raised before training starts.
        DivergenceError: training diverged. The last good adapter is kept.
    """
    clock = Clock()
    job = clock.time("loading", prepare, request, sets, retrained_log)
    inputs = clock.time("hashes", describe_job, job)
    with locked(job, inputs) as job:
        return _run_stages(job, inputs, clock)


def rehearse(request: Request) -> Forecast:
    """Return the forecast of `unlearn`, after reading and checking everything that it would. This writes nothing.

    Raises:
        InputError: as for `unlearn`.
    """
    job = prepare(request)
    return forecast(_with_lessons(job) if request.args.has_teacher else job)


def _run_stages(job: Job, inputs: dict[str, Any], clock: Clock) -> Result:
    # Lessons come first, because a teacher may refuse the rows, and until then nothing should be written.
    if job.request.args.has_teacher:
        job = clock.time("lessons", _with_lessons, job)
    announce(forecast(job))
    start(job)
    _write_inputs(job)
    original = clock.time("evaluation_original", evaluate_in_run, job, "original", job.model, job.original_log)
    if job.retrained_log is not None or job.retrained_model is not None:
        job = replace(job, retrained_log=clock.time("evaluation_retrained", _retrained_log, job))
    importance = clock.time("importance", importance_for, job)
    trainer = clock.time("training", _train, job, importance)
    model, cost = clock.time("export", _export, job, trainer.model)
    unlearned = clock.time("evaluation_unlearned", evaluate_in_run, job, "unlearned", model)
    metrics = {
        "train": trainer.state.log_history,
        "trained_on": trained_on(job),
        **cost,
        **_compare(job, original, unlearned),
    }
    _write_results(job, inputs, clock, metrics)
    return Result(job.folder, metrics, model)


def _retrained_log(job: Job) -> Log | None:
    """Return the retrained model's log. It is saved in the run's folder, because the report only reads this folder."""
    model = job.model
    if job.retrained_model is not None and job.sets and not job.is_finished(EVALUATIONS["retrained"]):
        model, _ = load_model(job.retrained_model)
    return evaluate_in_run(job, "retrained", model, job.retrained_log)


@main_only
def _write_inputs(job: Job) -> None:
    """Write the inputs of the run: its settings, and the hashes of the rows to forget."""
    write_text(job.folder / CONFIG, yaml.safe_dump(job.request.settings(), sort_keys=False))
    write_forgotten(job.folder, job.rows.used_forget, job.request.model.on)


def _with_lessons(job: Job) -> Job:
    """Return the job with the lessons of its teacher."""
    request, rows = job.request, job.rows
    names = [tuple(name.split()) for name in request.data.forget_names or ()]
    seed = request.args.pairing_seed
    teaching = Teaching(job.model, job.text_format, rows.used_forget, rows.retain, names or None, seed)
    return replace(job, taught=TEACHERS[request.args.teacher].teach(teaching))


def _train(job: Job, importance: Mapping[str, Tensor] | None) -> UnlearnTrainer:
    """Attach the initialised adapters, and train them until the last epoch or until a stopping criterion is met."""
    args, stopping = job.request.args, job.request.stopping
    set_seed(args.seed)  # a plain LoRA start is drawn at random
    model = attach_adapters(job.model, args, importance)
    tokenizer = job.text_format.tokenizer
    lessons = None if job.taught is None else [one.lesson for one in job.taught]
    evaluator = partial(evaluate_in_training, job) if args.evaluates else None
    trainer = UnlearnTrainer(model, args, job.trained, job.retain, tokenizer, job.alternates, lessons, evaluator)
    if job.unseen:
        trainer.add_callback(StopWhenUnseen(trainer, job.unseen, stopping.stop_every, stopping.stop_auc))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return trainer


def _export(job: Job, model: PeftModel) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Write the adapter. Return the model with this adapter, and the cost of compressing it.

    If the exported rank is smaller than the trained one, the exported adapter differs from the trained one. The
    exported one is then loaded and evaluated, because it is what the user gets.
    """
    rank = job.request.args.export_rank
    if not job.is_finished(ADAPTER):  # a resumed run that got this far already has the same adapter
        job.write(ADAPTER, lambda path: export_adapter(model, path, rank))
    if rank is None:
        return model, {}
    cost = asdict(compression(model, rank))
    return load_adapter(model.unload(), str(job.folder / ADAPTER)), {"compression": cost}


@main_only
def _compare(job: Job, original: Log | None, unlearned: Log | None) -> dict[str, Any]:
    """Write the answers of both models side by side. Return {model: metrics}, empty if nothing was evaluated."""
    if original is None or unlearned is None:
        return {}
    write_jsonl(job.folder / SAMPLES, samples(original, unlearned))
    return {name: summarise(log, job.retrained_log) for name, log in (("original", original), ("unlearned", unlearned))}


@main_only
def _write_results(job: Job, inputs: dict[str, Any], clock: Clock, metrics: dict[str, Any]) -> None:
    """Write metrics, record and report, in this order, because each reads the files before it."""
    args = job.request.args
    seeds = {"seed": args.seed, "data_seed": args.pairing_seed}
    write_json(job.folder / METRICS, metrics)
    write_record(
        job.folder,
        inputs,
        clock.seconds,
        metrics,
        seeds={**seeds, "importance_seed": job.request.importance.importance_seed},
        device=args.device.type,
        processes=args.world_size,
        resumed=bool(args.resume_from_checkpoint),
    )
    write_report(job.folder)
    assert job.stages is not None
    job.stages.finish(METRICS, RECORD, REPORT)
