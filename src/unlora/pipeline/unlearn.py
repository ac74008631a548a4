"""One request from records to an exported adapter: the only place that knows the order of the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor
from transformers import set_seed

from unlora.adapter import attach_adapters, compression, export_adapter
from unlora.common.distributed import on_main
from unlora.common.files import write_json, write_jsonl, write_text
from unlora.data.lessons import Lesson
from unlora.data.sources import Record
from unlora.evals import Log, summarise, write_log
from unlora.models.load import load_adapter
from unlora.pipeline.evaluation import Evaluation, samples
from unlora.pipeline.importance import importance_for
from unlora.pipeline.job import Job
from unlora.pipeline.prepare import prepare, retain_stream
from unlora.pipeline.request import Request
from unlora.report.page import write_report
from unlora.runs.folder import ADAPTER, CONFIG, EVALUATIONS, METRICS, SAMPLES
from unlora.runs.forgotten import write_forgotten
from unlora.runs.record import Clock, describe_inputs, write_record
from unlora.teachers import TEACHERS, Teaching
from unlora.training.checkpoints import checkpoint_to_resume
from unlora.training.stopping import StopWhenUnseen
from unlora.training.trainer import UnlearnTrainer


@dataclass(frozen=True)
class Result:
    """What a run leaves: the folder, the metrics of the original and the unlearned model, and the model itself."""

    folder: Path
    metrics: dict[str, Any]
    model: Any


def unlearn(
    request: Request, sets: Mapping[str, Sequence[Record]] | None = None, retrained_log: Log | None = None
) -> Result:
    """Run one request: importance, training, export, evaluation, report.

    Args:
        request: all settings.
        sets: what to evaluate, as for `unlora.evals.evaluate`; what the request names if not given.
        retrained_log: log of a model trained without the forget set; what the request names if not given.

    Raises:
        InputError: anything wrong with the input, before training starts.
        DivergenceError: training went wrong; the last good adapter is kept.
    """
    clock = Clock()
    job = clock.time("loading", prepare, request, sets, retrained_log)
    inputs = clock.time("hashes", on_main, lambda: describe_job(job))
    on_main(lambda: write_inputs(job))
    evaluation = Evaluation(job.sets, job.text_format, request.evaluation, job.folder)
    original = clock.time("evaluation_original", evaluation.log, "original", job.model, job.original_log)
    importance = clock.time("importance", importance_for, job)
    lessons = clock.time("lessons", lessons_for, job)
    trainer = clock.time("training", train, job, importance, lessons)
    model, cost = clock.time("export", export, job, trainer.model)
    unlearned = clock.time("evaluation_unlearned", evaluation.log, "unlearned", model)
    metrics = {"train": trainer.state.log_history, **cost}
    if original and unlearned:
        logs = {"original": original, "unlearned": unlearned}
        metrics |= {name: summarise(log, job.retrained_log) for name, log in logs.items()}
        on_main(lambda: write_jsonl(job.folder / SAMPLES, samples(**logs)))
    on_main(lambda: write_results(job, inputs, clock, metrics))
    return Result(job.folder, metrics, model)


def describe_job(job: Job) -> dict[str, Any]:
    """What the record says about the data and the base model."""
    request = job.request
    parts = (request.model, request.data, request.stopping, request.evaluation)
    stream = retain_stream(request, len(job.forget_rows))
    return describe_inputs(*parts, job.forget_rows, job.retain_rows, job.sets, stream)


def write_inputs(job: Job) -> None:
    """Write what the run was asked for: its settings, the hashes of the rows to forget, the retrained model's log."""
    write_text(job.folder / CONFIG, yaml.safe_dump(job.request.settings(), sort_keys=False))
    write_forgotten(job.folder, job.used_forget_rows, job.request.model.on)
    if job.retrained_log is not None:  # so that the folder holds everything that its report shows
        write_log(job.retrained_log, job.folder / EVALUATIONS["retrained"])


def lessons_for(job: Job) -> list[Lesson] | None:
    """What the teacher predicts for the forget set, if the loss distils one."""
    request = job.request
    if not request.args.has_teacher:
        return None
    names = [tuple(name.split()) for name in request.data.forget_names or ()]
    teaching = Teaching(
        job.model, job.text_format, job.used_forget_rows, job.retain_rows, names or None, request.args.pairing_seed
    )
    return TEACHERS[request.args.teacher].teach(teaching)


def train(job: Job, importance: Mapping[str, Tensor] | None, lessons: Sequence[Lesson] | None) -> UnlearnTrainer:
    """Attach the adapters at their start, and train them until the epochs or the stopping test end."""
    args, stopping = job.request.args, job.request.stopping
    set_seed(args.seed)  # a plain LoRA start is drawn at random
    model = attach_adapters(job.model, args, importance)
    tokenizer = job.text_format.tokenizer
    trainer = UnlearnTrainer(model, args, job.forget, job.retain, tokenizer, job.alternates, lessons)
    if job.unseen:
        trainer.add_callback(StopWhenUnseen(trainer, job.unseen, stopping.stop_every, stopping.stop_auc))
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(args))
    return trainer


def export(job: Job, model: Any) -> tuple[Any, dict[str, Any]]:
    """Write the adapter; returns the model that it makes, and what compressing it cost.

    An adapter of fewer ranks than were trained is another adapter, and the exported one is what counts. So that one is
    loaded, and evaluated afterwards.
    """
    path, rank = job.folder / ADAPTER, job.request.args.export_rank
    if not on_main(path.exists):  # a resumed run may have come this far already, and then it is the same adapter
        on_main(lambda: export_adapter(model, path, rank))
    if rank is None:
        return model, {}
    cost = asdict(compression(model, rank))
    return load_adapter(model.unload(), str(path)), {"compression": cost}


def write_results(job: Job, inputs: dict[str, Any], clock: Clock, metrics: dict[str, Any]) -> None:
    """Write metrics, record and report, in this order: each needs the files before it."""
    args = job.request.args
    write_json(job.folder / METRICS, metrics)
    write_record(
        job.folder,
        inputs,
        clock.seconds,
        metrics,
        seeds={
            "seed": args.seed,
            "data_seed": args.pairing_seed,
            "importance_seed": job.request.importance.importance_seed,
        },
        device=args.device.type,
        processes=args.world_size,
        resumed=bool(args.resume_from_checkpoint),
    )
    write_report(job.folder)
