"""One request from records to an exported adapter: the only place that knows the order of the stages."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor
from transformers import set_seed

from unlora.adapter import attach_adapters, check_adapter_settings, compression, export_adapter
from unlora.adapter.export import check_unused
from unlora.config import ADAPTER, CONFIG, DataConfig, EvalConfig, ImportanceConfig, ModelConfig, StoppingConfig
from unlora.data import (
    Batch,
    Example,
    Stream,
    TextFormat,
    alternate_rows,
    check_overlap,
    encode_records,
    iter_batches,
    load_records,
    padding_id,
    without_short_texts,
)
from unlora.data.sources import Record
from unlora.distributed import on_main, share, together
from unlora.errors import InputError, Problem, raise_if
from unlora.evals import EvalSettings, Log, evaluate, read_log, summarise, write_log
from unlora.evals.tofu import TASKS, check_same_examples, text_count
from unlora.files import write_json, write_jsonl, write_text
from unlora.finetune import resume_point
from unlora.fisher import load_importance, normalised_rows, save_importance
from unlora.fisher.storage import importance_key
from unlora.forgotten import check_not_taught_again, write_forgotten
from unlora.initialisers import INITIALISERS, Measurement
from unlora.losses import LOSSES
from unlora.models import load_adapter, load_model
from unlora.progress import bar, shown
from unlora.record import Clock, inputs, write_record
from unlora.report import write_report
from unlora.report.read import LOGS
from unlora.stopping import StopWhenUnseen, UnseenTest, unseen_test
from unlora.trainer import UnlearnConfig, UnlearnTrainer

logger = logging.getLogger(__name__)
IMPORTANCE, METRICS, SAMPLES = "importance.safetensors", "metrics.json", "samples.jsonl"

# Retain examples per forget example in the estimate: the authors pass ten times over equal parts of both.
RETAIN_SHARE = 10


@dataclass(frozen=True)
class Request:
    """Everything a user set for one unlearning request."""

    model: ModelConfig
    data: DataConfig
    importance: ImportanceConfig
    evaluation: EvalConfig
    args: UnlearnConfig
    stopping: StoppingConfig = field(default_factory=StoppingConfig)

    def check(self) -> None:
        """Raises one `InputError` with every problem that can be seen before anything is loaded."""
        parts = (self.model, self.data, self.importance, self.evaluation, self.args, self.stopping)
        raise_if([*(problem for part in parts for problem in part.problems()), *self._unread_alternates()])
        unread = self.importance.unread()
        if unread:  # no error: one configuration serves several initialisers, as in a grid
            logger.warning("init=%r does not read %s", self.importance.init, ", ".join(unread))
        if not self.args.resume_from_checkpoint:
            check_unused(Path(self.args.output_dir), "output_dir")

    @property
    def reads_alternates(self) -> bool:
        """Whether the loss teaches another answer to each forget question."""
        return "alternate" in LOSSES[self.args.loss].reads

    def _unread_alternates(self) -> Iterator[Problem]:
        if self.data.alternate_key is not None and not self.reads_alternates:
            readers = " or ".join(name for name, loss in LOSSES.items() if "alternate" in loss.reads)
            reason, fix = f"{self.args.loss!r} reads no such answers", f"leave it out or use {readers}"
            yield Problem("alternate_key", self.data.alternate_key, reason, fix)

    def settings(self) -> dict[str, Any]:
        """One flat mapping of flags: all of ours, and the training arguments that differ from their defaults."""
        flat: dict[str, Any] = {}
        for part in (self.model, self.data, self.importance, self.evaluation, self.stopping):
            flat |= asdict(part)
        return flat | {"loss": self.args.loss} | changed_arguments(self.args)


@dataclass(frozen=True)
class Materials:
    """What the stages work on: the loaded model, the forget and retain sets, raw and tokenised, and when to stop.

    `alternates` are other answers to the forget set's questions, where the loss reads them.
    """

    model: Any
    text_format: TextFormat
    forget_rows: Sequence[Record]
    retain_rows: Sequence[Record]
    forget: Sequence[Example]
    retain: Sequence[Example]
    alternates: Sequence[Example] | None = None
    unseen: UnseenTest | None = None


@dataclass(frozen=True)
class Result:
    """What a run leaves: the folder, the metrics of the model before and after, and the model itself."""

    folder: Path
    metrics: dict[str, Any]
    model: Any


def unlearn(
    request: Request, sets: Mapping[str, Sequence[Record]] | None = None, retrain_log: Log | None = None
) -> Result:
    """Runs one request whole: importance, training, export, evaluation.

    Args:
        request: all settings.
        sets: what to evaluate, as for `unlora.evals.evaluate`; what the request names if not given.
        retrain_log: log of a model trained without the forget set; what the request names if not given.

    Raises:
        InputError: anything wrong with the input, before training starts.
        DivergenceError: training went wrong; the last good adapter is kept.
    """
    folder, clock = Path(request.args.output_dir), Clock()
    with together():  # none writes before all have seen that the folder is free
        request.check()
        materials = prepare(request)
        sets = evaluation_sets(request, materials) if sets is None else sets
        if retrain_log is None and request.evaluation.retrain_log:
            retrain_log = read_log(request.evaluation.retrain_log, "retrain_log")
        if retrain_log is not None:
            check_forget_quality(sets, retrain_log, request.evaluation.ds_size)
        original_log = known_log(request.evaluation, sets)
    clock.lap("loading")
    sources = on_main(lambda: sources_of(request, materials, sets))
    clock.lap("hashes")
    on_main(lambda: write_text(folder / CONFIG, yaml.safe_dump(request.settings(), sort_keys=False)))
    used = without_short_texts(materials.forget_rows, request.data.min_characters)
    on_main(lambda: write_forgotten(folder, used, request.model.on))
    evaluation = Evaluation(sets, materials.text_format, request.evaluation, folder)
    before = evaluation.log("before", materials.model, original_log) if sets else None
    clock.lap("evaluation_before")
    if retrain_log is not None:  # beside the others, so that the folder holds all that the report shows
        on_main(lambda: write_log(retrain_log, folder / LOGS["retrained"]))
    importance = importance_for(request, materials, folder / IMPORTANCE)
    clock.lap("importance")
    set_seed(request.args.seed)  # a plain LoRA start is drawn at random
    model = attach_adapters(materials.model, request.args, importance)
    tokenizer = materials.text_format.tokenizer
    trainer = UnlearnTrainer(
        model, request.args, materials.forget, materials.retain, tokenizer, alternates=materials.alternates
    )
    if materials.unseen:
        config = request.stopping
        trainer.add_callback(StopWhenUnseen(trainer, materials.unseen, config.stop_every, config.stop_auc))
    trainer.train(resume_from_checkpoint=resume_point(request.args))
    clock.lap("training")
    metrics: dict[str, Any] = {"train": trainer.state.log_history}
    rank = request.args.export_rank
    if not on_main((folder / ADAPTER).exists):  # else a resumed run that had come this far: it is the same adapter
        on_main(lambda: export_adapter(model, folder / ADAPTER, rank))
    if rank is not None:  # then the exported adapter is another one, and it is what counts
        metrics["compression"] = asdict(compression(model, rank))
        model = load_adapter(model.unload(), str(folder / ADAPTER))
    clock.lap("export")
    if before:
        after = evaluation.log("after", model)
        on_main(lambda: write_jsonl(folder / SAMPLES, samples(before, after)))
        metrics |= {"before": summarise(before, retrain_log), "after": summarise(after, retrain_log)}
    clock.lap("evaluation_after")
    on_main(lambda: write_json(folder / METRICS, metrics))
    on_main(lambda: write_record(folder, request, sources, clock.laps, metrics))  # it has the hashes of the others
    on_main(lambda: write_report(folder))
    return Result(folder, metrics, model)


def prepare(request: Request) -> Materials:
    """Loads data and model, and checks everything that can be checked before any pass over them."""
    data = request.data
    forget_rows = load_records(data.forget_data, data.forget_name, data.forget_split, argument="forget_data")
    retain_rows = load_records(
        data.retain_data,
        data.retain_name,
        data.retain_split,
        argument="retain_data",
        stream=retain_stream(request, len(forget_rows)),
    )
    # What is measured and trained on. The rows themselves stay as they were read: the record has their hashes.
    used_forget, used_retain = (
        without_short_texts(rows, data.min_characters, name)
        for name, rows in (("forget_data", forget_rows), ("retain_data", retain_rows))
    )
    check_overlap(used_forget, used_retain)
    check_not_taught_again(used_retain, request.model.on)
    # Before the model is loaded: it may refuse the rows.
    alternates = (
        alternate_rows(used_forget, data.alternate_key, request.args.pairing_seed) if request.reads_alternates else None
    )
    model, tokenizer = load_model(request.model)
    raise_if([*check_adapter_settings(model, request.args), *request.args.model_problems(model)])
    text_format = TextFormat(tokenizer, data.prompt_format, usable_length(model, data.max_length), data.max_chunks)
    forget = encode_records(used_forget, text_format, argument="forget_data")
    retain = encode_records(used_retain, text_format, argument="retain_data")
    raise_if(too_few_examples(request.importance, forget, retain))
    other = encode_records(alternates, text_format, argument="alternates") if alternates else None
    evaluation = request.evaluation
    unseen = unseen_test(
        request.stopping, forget_rows, retain_rows, text_format, evaluation.ds_size, evaluation.eval_batch_size
    )
    return Materials(model, text_format, forget_rows, retain_rows, forget, retain, other, unseen)


def sources_of(request: Request, materials: Materials, sets: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """What the record says of data and base."""
    stream = retain_stream(request, len(materials.forget_rows))
    return inputs(request, materials.forget_rows, materials.retain_rows, sets, stream)


def retain_stream(request: Request, forget_rows: int) -> Stream | None:
    """As many retain rows as the run can use: those of the estimate, or one for each pair of the whole training.

    None where they are not streamed.
    """
    if not request.data.streaming:
        return None
    args = request.args
    pairs = math.ceil(args.num_train_epochs) * forget_rows
    if args.max_steps > 0:
        pairs = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = max(pairs, request.importance.retain_samples or RETAIN_SHARE * forget_rows)
    return Stream(rows, args.pairing_seed, request.data.shuffle_buffer_size)


def too_few_examples(
    config: ImportanceConfig, forget: Sequence[Example], retain: Sequence[Example]
) -> Iterator[Problem]:
    """Sets that give a single gradient: its variance would be nothing but rounding errors."""
    centred = INITIALISERS[config.init].centred
    if centred is None or config.centred is False or (config.centred is None and not centred):
        return
    size = (config.importance_batch_size or 1) if config.moments_per == "batch" else 1
    gradients = {
        "forget_data": config.forget_passes * -(-len(forget) // size),
        "retain_data": -(-min(len(retain), config.retain_samples or len(retain)) // size),
    }
    for name, count in gradients.items():
        if count < 2:
            reason = f"{config.init!r} takes the variance of gradients, which needs those of two examples or batches"
            fix = f"give at least {size + 1} examples, or use init='fila', 'pissa' or 'lora'"
            yield Problem(name, "1 gradient", reason, fix)


def usable_length(model: Any, max_length: int) -> int:
    """`max_length`, or the number of the model's positions where it has fewer."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or max_length
    return min(max_length, positions)


def importance_for(request: Request, materials: Materials, path: Path) -> dict[str, Tensor] | None:
    """The row importance: read where the user or an earlier part of this run has it, else estimated and saved.

    None for a plain LoRA start. What is not measured on data is made anew each time. The file has the importance as it
    was measured, so that layers can be compared; what is returned is normalised where that is asked for.
    """
    config, given = request.importance, request.importance.importance_file
    size = config.retain_samples or RETAIN_SHARE * len(materials.forget)
    retain = retain_sample(materials.retain, size, config.importance_seed)
    initialiser = INITIALISERS[config.init]
    measurement = measurement_for(request, materials, retain)
    if initialiser.centred is None:
        return initialiser.rows(measurement)
    args, targets = request.args, request.args.target_modules
    # The gradients of the factors grow with the scaling, and only a relative ε grows with them.
    adapter = {"r": args.r, "scaling": args.scaling, "targets": sorted(targets) if targets else "all-linear"}
    settings = {**config.estimate(), **adapter}
    key = importance_key(materials.model, (materials.forget, retain), settings)
    importance = on_main(lambda: load_importance(given or path, key) if given or path.exists() else None)
    if importance is None:
        if args.gradient_checkpointing:
            materials.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
            materials.model.train()
        measured = initialiser.rows(measurement)
        materials.model.eval()
        assert measured is not None
        on_main(lambda: save_importance(measured, path, key, settings))
        importance = measured
    return normalised_rows(importance) if config.normalised else importance


def retain_sample(retain: Sequence[Example], size: int, seed: int) -> list[Example]:
    """`size` random examples, or all of them where there are fewer."""
    return random.Random(seed).sample(list(retain), min(size, len(retain)))


def measurement_for(request: Request, materials: Materials, retain: Sequence[Example]) -> Measurement:
    """What the initialiser may look at: this process's share of the batches."""
    config = request.importance
    pad_id, size = padding_id(materials.text_format.tokenizer), config.batch_size(materials.model.device.type)

    def of_forget() -> Iterable[Batch]:
        drawn = random.Random(config.importance_seed)
        passes = [drawn.sample(materials.forget, len(materials.forget)) for _ in range(config.forget_passes)]
        return shown_batches("forget", passes, config, size, pad_id)

    def of_retain(part: slice = slice(None)) -> Iterable[Batch]:
        return shown_batches("retain", [retain[part]], config, size, pad_id)

    return Measurement(materials.model, request.args, config, of_forget, of_retain, len(retain))


def shown_batches(
    name: str, passes: Sequence[Sequence[Example]], config: ImportanceConfig, size: int, pad_id: int
) -> Iterable[Batch]:
    """This process's batches of all passes, with a progress bar: of similar length where that changes no moments."""
    if config.moments_per == "example":
        parts: Sequence[Sequence[Example]] = [share(examples) for examples in passes]
    else:  # whole batches are shared: their gradients depend on who is in them
        parts = share([examples[i : i + size] for examples in passes for i in range(0, len(examples), size)])
    sort = config.moments_per == "example"
    batches = (batch for part in parts for batch in iter_batches(part, size, pad_id, sort=sort))
    total = sum(-(-len(part) // size) for part in parts)
    return bar(batches, total=total, desc=f"gradients of the {name} set", unit=" batches")


def evaluation_sets(request: Request, materials: Materials) -> dict[str, Sequence[Record]]:
    """What is evaluated: the sets the user names, or forget and retain set where their rows are questions."""
    config = request.evaluation
    if config.eval_data:
        return dict(config.sets())
    rows = {"forget": materials.forget_rows, "retain": materials.retain_rows}
    if all("question" in part[0] for part in rows.values()):
        return rows
    logger.warning("the rows are not questions and answers: only the losses are reported; name eval_data for more")
    return {}


def check_forget_quality(sets: Mapping[str, Sequence[Record]], retrain_log: Log, ds_size: int | None) -> None:
    """Raises `InputError`, before long work, where forget quality is asked for and could not be computed after it."""
    summarise(retrain_log, retrain_log)
    if not sets.get("forget") or "perturbed_answer" not in sets["forget"][0]:
        reason = "forget quality compares truth ratios, and the evaluated forget rows have no perturbed_answer"
        fix = "name eval_data with perturbed answers, or leave retrain_log out"
        raise InputError(Problem("retrain_log", "a log", reason, fix))
    rows = sets["forget"][:ds_size]
    answers = [str(row.get("answer")) for row in rows]
    perturbed = [row.get("perturbed_answer") or () for row in rows]
    check_same_examples(answers, perturbed, retrain_log, "retrain_log")


def known_log(config: EvalConfig, sets: Mapping[str, Sequence[Record]]) -> Log | None:
    """The log of the model before that the user has, if any; one of other sets or sizes is refused."""
    if config.original_log is None:
        return None
    log = read_log(config.original_log, "original_log")
    sizes = {TASKS[name]: len(rows[: config.ds_size]) for name, rows in sets.items()}
    if {task: len(columns["generated_text"]) for task, columns in log.items()} != sizes:
        reason = f"it is of other sets or sizes than this evaluation, which has {sizes}"
        raise InputError(Problem("original_log", config.original_log, reason, "leave it out, or evaluate anew"))
    return log


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated before and after, and where the logs go."""

    sets: Mapping[str, Sequence[Record]]
    text_format: TextFormat
    config: EvalConfig
    folder: Path

    def log(self, name: str, model: Any, known: Log | None = None) -> Log:
        """The model's log, saved as `eval_<name>.json`; read from there where a run that is resumed has it already."""
        path = self.folder / f"eval_{name}.json"
        if known is None and not on_main(path.exists):
            known = evaluate_shown(name, model, self.sets, self.text_format, self.config.settings())
        if known is not None:
            on_main(lambda: write_log(known, path))
        return on_main(lambda: read_log(path))


def evaluate_shown(
    name: str, model: Any, sets: Mapping[str, Sequence[Record]], text_format: TextFormat, settings: EvalSettings
) -> Log:
    """`evaluate` with a progress bar."""
    with shown(f"evaluation {name}", " texts", text_count(sets, settings)) as progress:
        return evaluate(model, sets, text_format, settings, progress)


def samples(before: Log, after: Log) -> list[dict[str, str]]:
    """Question, reference and the two generated answers of every evaluated row."""
    rows = []
    for task, columns in before.items():
        for index, (prompt, old, reference) in columns["generated_text"].items():
            new = after[task]["generated_text"][index][1]
            rows.append({"task": task, "prompt": prompt, "reference": reference, "before": old, "after": new})
    return rows


def changed_arguments(args: Any) -> dict[str, Any]:
    """The fields of a `TrainingArguments` that differ from their defaults, as plain values for YAML."""
    # A `TrainingArguments` sets up the device anew: on the CPU again, or this process would leave the others.
    values, defaults = args.to_dict(), type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu).to_dict()
    defaults |= {"output_dir": None, "use_cpu": False}
    return {name: value for name, value in values.items() if value != defaults[name]}
