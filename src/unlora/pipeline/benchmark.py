"""Evaluate one model on one benchmark: check the settings, load data and model, score, write the log."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from unlora.benchmarks import Benchmark, Reading
from unlora.common.distributed import on_main
from unlora.common.errors import raise_if
from unlora.data import TextFormat
from unlora.models.load import load_model
from unlora.pipeline.loading import comparable_model, load_target
from unlora.pipeline.request import model_problems
from unlora.runs.folder import EVALUATIONS, SCORES
from unlora.settings import EvaluateConfig, ModelConfig, TextConfig, is_log
from unlora.settings.checks import Checked


def measure(
    benchmark: Benchmark,
    model_config: ModelConfig,
    target: EvaluateConfig,
    settings: Checked,
    text: TextConfig | None = None,
) -> tuple[Reading, dict[str, Any]]:
    """Score a model on a benchmark, and write its log to `target.log`.

    Args:
        benchmark: the benchmark.
        model_config: the model.
        target: its adapter, and the path of the log. With `model_config.on`, the log defaults to a file in that run.
        settings: an instance of `benchmark.settings`.
        text: how rows are tokenised, for a benchmark that leaves this to the user.

    Returns:
        The numbers in the log, and the benchmark's summary of it.

    Raises:
        InputError: invalid settings, data or model, or a log of the retrained model that does not fit.
    """
    files = EVALUATIONS if benchmark.evaluated_by_unlearn else SCORES
    target.log_in_run(model_config, files["unlearned"])
    problems = [*model_problems(model_config), *target.target_problems(model_config), *settings.problems()]
    raise_if([*problems, *target.retrained_problems(), *(text.problems() if text else ())])
    data = benchmark.load(settings)
    retrained, other = None, None
    if target.retrained and is_log(target.retrained):
        retrained = benchmark.read_retrained(target.retrained, data, settings)
    elif target.retrained:
        other = comparable_model(model_config, target.retrained, "retrained")

    def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
        text_format = TextFormat.of(tokenizer, text, model.config) if text else TextFormat(tokenizer, "base")
        return benchmark.score(model, text_format, data, settings)

    log = score(*load_target(model_config, target))
    if other is not None:
        retrained = score(*load_model(other))
    summary = benchmark.summary(log, retrained)
    on_main(lambda: benchmark.write_log(target.log, log, summary))
    return benchmark.read(log, retrained), summary
