"""`unlora evaluate`: TOFU's metrics of a model, with or without an adapter."""

from __future__ import annotations

from unlora.cli.arguments import parse
from unlora.cli.output import Answer
from unlora.common.errors import raise_if
from unlora.settings import EvalConfig, ModelConfig, TargetConfig, TextConfig
from unlora.settings.checks import missing

EXAMPLE = "unlora evaluate --model_name_or_path model --adapter run/adapter --eval_data locuslab/TOFU --log eval.json"


SETTINGS = (ModelConfig, TextConfig, TargetConfig, EvalConfig)


def run(argv: list[str]) -> Answer:
    """Evaluates, writes the log, and shows the metrics."""
    from unlora.cli.tables import print_comparison
    from unlora.common.distributed import on_main
    from unlora.data import TextFormat
    from unlora.evals import read_log, summarise, write_log
    from unlora.evals.tofu import configured_sets
    from unlora.pipeline.evaluation import check_forget_quality, evaluate_shown
    from unlora.pipeline.loading import load_target
    from unlora.pipeline.prepare import usable_length
    from unlora.pipeline.request import model_problems

    model_config, text, target, config = parse(SETTINGS, argv, "evaluate", EXAMPLE)
    problems = (*model_problems(model_config), *target.target_problems(model_config))
    raise_if([*problems, *missing(config, ("eval_data",)), *text.problems(), *config.problems()])
    sets = configured_sets(config)
    retrained_log = read_log(config.retrain_log, "retrain_log") if config.retrain_log else None
    if retrained_log is not None:
        check_forget_quality(sets, retrained_log, config.ds_size)
    model, tokenizer = load_target(model_config, target)
    text_format = TextFormat(tokenizer, text.prompt_format, usable_length(model, text.max_length))
    log = evaluate_shown(target.log, model, sets, text_format, config)
    on_main(lambda: write_log(log, target.log))
    summary = summarise(log, retrained_log)
    return Answer(summary, lambda: print_comparison({"model": summary}), target.log)
