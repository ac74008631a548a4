"""MUSE (Shi et al. 2025, https://arxiv.org/abs/2407.06460): its six criteria.

C1 verbatim memorisation, C2 knowledge memorisation, C3 privacy leakage and C4 utility are the four numbers of one
model. C5 and C6 are the same numbers after requests of growing size (splits scal_1 to scal_4) and after four requests
in sequence (sust_1 to sust_4). Prompts, lengths and cuts are those of MUSE's released code. Scores are {set: {score:
one number per example}} as in `evals/membership/leakage.py`, so that two models can be compared later.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlora.benchmarks.interface import (
    ALL,
    Benchmark,
    Log,
    Measured,
    Metric,
    Options,
    Reading,
    needed,
    read_json,
    unknown_splits,
    with_set,
)
from unlora.common.errors import NOT_AVAILABLE, InputError, Problem, raise_if
from unlora.common.files import write_text
from unlora.common.progress import shown
from unlora.common.reading import check_finite
from unlora.evals.membership.leakage import (
    Scores,
    check_retrained,
    is_scores,
    leakage_scores,
    read_scores,
    summarise_leakage,
)
from unlora.evals.metrics import finite_values, rouge_l_f1, warn_of_wordless
from unlora.evals.open_unlearning import KEPT, document_errors, summary_of
from unlora.evals.open_unlearning_muse import METRICS, from_document, is_document, numbers, to_document
from unlora.evals.progress import Progress, continued
from unlora.models.hashes import sets_sha256
from unlora.settings import BenchmarkSettings
from unlora.settings.evaluation import EVAL, SUMMARY, summary_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from unlora.data import Example, TextFormat
    from unlora.data.sources import Record

logger = logging.getLogger(__name__)
Sets = Mapping[str, "Sequence[Record]"]

# Each set: configuration and split on the Hub, and the columns of its rows.
_SOURCES = {
    "verbmem": ("verbmem", "forget", ("prompt", "gt")),
    "forget_qa": ("knowmem", "forget_qa", ("question", "answer")),
    "forget_qa_icl": ("knowmem", "forget_qa_icl", ("question", "answer")),
    "retain_qa": ("knowmem", "retain_qa", ("question", "answer")),
    "retain_qa_icl": ("knowmem", "retain_qa_icl", ("question", "answer")),
    "forget": ("privleak", "forget", ("text",)),
    "holdout": ("privleak", "holdout", ("text",)),
}
FOLDS = ("forget_1", "forget_2", "forget_3", "forget_4")
# Each split: configuration and split of what is forgotten. C5's requests are independent, C6's build on each other.
REQUESTS = {
    "forget": ("raw", "forget"),
    **{f"scal_{number}": ("scal", fold) for number, fold in enumerate(FOLDS, 1)},
    **{f"sust_{number}": ("sust", fold) for number, fold in enumerate(FOLDS, 1)},
}
# Metric -> the set whose mean ROUGE-L F1 it is.
ROUGE_METRICS = {"verbmem_f": "verbmem", "knowmem_f": "forget_qa", "knowmem_r": "retain_qa"}
NEW_TOKENS = {"verbmem": 128, "forget_qa": 32, "retain_qa": 32}
# An answer ends here at the latest, because the model has begun another question.
_ANSWER_END = re.compile("\n\n|\nQuestion|Question:")
# MUSE reports Min-40%. The other attack is for comparison.
PRIVLEAK_ATTACKS = ("min_k_40", "min_k_20")
PRIVLEAK_NEEDS = "it compares with a model trained without the forget set; name that model, or its log, by --retrained"


class Muse(Benchmark):
    """MUSE-News or MUSE-Books, or a folder with the same configurations."""

    name = "muse"
    title = "MUSE"
    paper = "Shi et al. 2025, arXiv 2407.06460"
    needs = "data (muse-bench/MUSE-News or -Books), the model that was trained on it; a retrained model for privleak"
    splits = tuple(REQUESTS)
    after = {f"sust_{number}": f"sust_{number - 1}" for number in range(2, len(FOLDS) + 1)}  # noqa: RUF012
    metrics = {  # noqa: RUF012
        "verbmem_f": Metric("verbatim memorisation of the forget set (verbmem_f)", "low", limits=(0, 100)),
        "knowmem_f": Metric("knowledge of the forget set (knowmem_f)", "low", limits=(0, 100)),
        "privleak": Metric("privacy leakage (privleak)", "zero", PRIVLEAK_NEEDS),
        "knowmem_r": Metric("knowledge of the retain set (knowmem_r)", "high", limits=(0, 100)),
    }
    plane = ("knowmem_r", "knowmem_f")
    takes_text_settings = False

    def problems(self, options: Options) -> list[Problem]:
        """Return what is missing. One retrained model may serve all splits."""
        problems = needed(options, "name the model trained on the forget set", "name a folder, or muse-bench/MUSE-News")
        return problems + unknown_splits(options, (ALL, *REQUESTS))

    def request(self, options: Options, split: str, seed: int) -> dict[str, Any]:
        """Return the request: text in chunks of MUSE's length, with the first retain part as regulariser."""
        config, forget = REQUESTS[split]
        return {
            "model_name_or_path": options.model,
            "max_length": 2048,
            "forget_data": options.data,
            "forget_name": config,
            "forget_split": forget,
            "retain_data": options.data,
            "retain_name": "raw",
            "retain_split": "retain1",
            "seed": seed,
            "importance_seed": seed,
        }

    def load(self, settings: BenchmarkSettings) -> dict[str, list[Record]]:
        """Return the sets that C1 to C4 need."""
        return load_muse(settings.data, settings.ds_size)

    def rows(self, data: Sets) -> Iterable[Record]:
        """Return the rows of all sets, each with the name of its set."""
        return with_set(data)

    def score(self, model: PreTrainedModel, text_format: TextFormat, data: Sets, settings: BenchmarkSettings) -> Log:
        """Return scores and generated texts. MUSE uses no chat template, whatever the text format says."""
        with shown("evaluation on MUSE", " texts", text_count(data)) as progress:
            scores, texts = evaluate_muse(model, data, text_format.tokenizer, settings.eval_batch_size, progress)
        return {"rows": sets_sha256(data), "scores": scores, "texts": texts}

    def owns(self, log: Mapping[str, Any]) -> bool:
        """Whether the log has scores; older logs do not name their benchmark."""
        return "scores" in log or is_document(log)

    def read_log(self, path: str | Path, argument: str = "log") -> Log:
        """Read a log whose scores are complete, or a `MUSE_EVAL.json` or `MUSE_SUMMARY.json` of open-unlearning."""
        log = read_json(path, argument)
        if not is_document(log):
            _check_sets(read_scores(path, argument), path, argument)
            return log
        for reason in document_errors(log, METRICS):
            raise InputError(Problem(argument, str(path), reason, "give a MUSE_EVAL.json of open-unlearning"))
        found = from_document(log)
        if "forget" in found["scores"] and not is_scores(found["scores"]):
            reason = "its scores are not one number per example"
            raise InputError(Problem(argument, str(path), reason, "give a MUSE_EVAL.json as it was written"))
        return found

    def read_retrained(self, path: str, data: Sets, settings: BenchmarkSettings) -> Log:
        """Read the retrained model's log, which must be of the same rows."""
        log = self.read_log(path, "retrained")
        if KEPT not in log:
            read_muse_scores(path, data)
        return log

    def read(self, log: Log, retrained: Log | None = None) -> Reading:
        """Return C1 to C4 in percent, and the areas under the ROC curve that the privacy leakage is made from."""
        summary, scores = self.summary(log, retrained), log["scores"]
        values: dict[str, Measured | None] = {
            name: _percent(scores[part]["rougeL"]) if part in scores else None for name, part in ROUGE_METRICS.items()
        }
        values["privleak"] = _leakage(log, summary, retrained) if summary["membership"] else None
        theirs = {name: Measured(value) for name, value in summary["open_unlearning"].items()}
        return Reading(
            values={name: values[name] for name in self.metrics},
            examples=summary["examples"],
            derived=theirs,
            areas={name: Measured(row["auc"], row["standard_error"]) for name, row in summary["membership"].items()},
        )

    def write_log(self, path: str | Path, log: Log, summary: dict[str, Any]) -> None:
        """Write the log, in open-unlearning's format if the file's name ends in `_EVAL.json` or `_SUMMARY.json`."""
        name, kept = str(path), log.get(KEPT, {})
        whole = {"benchmark": self.name, "metrics": summary, **log}
        if not name.endswith((EVAL, SUMMARY)):
            check_finite({part: value for part, value in whole.items() if part != KEPT})
            write_text(path, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
            return
        if name.endswith(EVAL):
            write_text(path, json.dumps(to_document(whole), indent=4))
        write_text(summary_file(name) or name, json.dumps(summary_of(kept, summary["open_unlearning"]), indent=4))

    def summary(self, log: Log, retrained: Log | None = None) -> dict[str, Any]:
        """Return the metrics with both attacks of the privacy leakage (see `summarise_muse`), and open-unlearning's."""
        known = None if retrained is None or "forget" not in retrained["scores"] else retrained["scores"]
        return {**summarise_muse(log["scores"], known), "open_unlearning": numbers(log, retrained)}


def _percent(values: Sequence[float]) -> Measured:
    """Return the mean of shares in percent, with its standard error."""
    array = 100 * np.asarray(values, dtype=np.float64)
    return Measured(float(array.mean()), float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else 0.0)


def _leakage(log: Log, summary: Mapping[str, Any], retrained: Log | None) -> Measured | None:
    """Return the privacy leakage, or what the log says of it if it was computed with a log that is not at hand."""
    if retrained is None or "forget" not in retrained["scores"]:
        known = log.get("metrics", {}).get("privleak")
        return Measured(float(known)) if isinstance(known, int | float) else None
    if summary["privleak"] == NOT_AVAILABLE:  # the retrained model tells the sets apart perfectly
        return None
    attack = PRIVLEAK_ATTACKS[0]
    theirs = summarise_muse(retrained["scores"])["membership"][attack]["auc"]
    # The retrained model's area is taken as exact: the leakage is (A − A_r) / A_r with A = 1 − auc.
    error = 100 * summary["membership"][attack]["standard_error"] / (1 - theirs)
    return Measured(summary["privleak"], error)


def load_muse(path: str, ds_size: int | None = None) -> dict[str, list[Record]]:
    """Load the sets for C1 to C4, from the Hub ("muse-bench/MUSE-News") or a folder of `<config>/<split>.jsonl`.

    Args:
        path: the name on the Hub, or the folder.
        ds_size: how many rows of each set are used, from the first on; None for all. The question/answer pairs shown
            in context are always all used.

    Raises:
        InputError: sets that cannot be read, a column that is missing or empty, or texts that are in both privacy sets.
    """
    from unlora.data import check_overlap, load_records

    sets = {}
    for name, (config, split, columns) in _SOURCES.items():
        rows = load_records(path, config, split, argument=f"data ({config}, {split})")
        _check_columns(f"{config}.{split}", rows, columns)
        sets[name] = rows if name.endswith("_icl") else rows[:ds_size]
    check_overlap(sets["forget"], sets["holdout"], names=("forget", "holdout"))
    return sets


def _check_columns(name: str, rows: Sequence[Record], columns: Sequence[str]) -> None:
    """Raise `InputError` for rows in which one of the columns is not a text or is empty."""
    reason, fix = "it must be a non-empty text", f"give every row of {name} {' and '.join(columns)}"
    raise_if(
        Problem(f"{name}[{place}].{column}", row.get(column), reason, fix)
        for place, row in enumerate(rows)
        for column in columns
        if not (isinstance(row.get(column), str) and row[column].strip())
    )


def knowledge_prompt(question: str, pairs: Sequence[Record]) -> str:
    """Return the prompt for C2 and C4: question/answer pairs in context, and then the question.

    It ends with a space after "Answer:", as in MUSE's code.
    """
    context = "".join(f"Question: {pair['question']}\nAnswer: {pair['answer']}\n\n" for pair in pairs)
    return f"{context}Question: {question}\nAnswer: "


def cut_answer(text: str) -> str:
    """Return the text up to where the model begins another question."""
    return _ANSWER_END.split(text, maxsplit=1)[0]


def evaluate_muse(
    model: PreTrainedModel,
    sets: Sets,
    tokenizer: PreTrainedTokenizerFast,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> tuple[Scores, dict[str, list[list[str]]]]:
    """Score the model on all sets.

    Args:
        model: a causal LM, with or without adapters. It is left as it was found.
        sets: what `load_muse` returned.
        tokenizer: a fast tokenizer. The model sees neither its chat template nor an end token.
        batch_size: texts in a forward pass.
        progress: called with the number of texts done so far.

    Returns:
        The scores: "rougeL" (F1, 0 to 1) for verbmem, forget_qa and retain_qa, and those of `leakage_scores` for forget
        and holdout. And for each of the first three sets, pairs of the generated and the right text.

    Raises:
        InputError: a prompt and its continuation need more tokens than the model has positions.
    """
    from unlora.data import TextFormat
    from unlora.data.encoding import encode_text
    from unlora.evals.generation import continue_prompts
    from unlora.evals.scoring import check_positions, position_limit
    from unlora.models.generation import prompt_example

    limit = position_limit(model)
    text_format = TextFormat(tokenizer, "base", limit or TextFormat.max_length)
    prompts = {name: [encode_text(text, tokenizer) for text in _prompts(name, sets)] for name in NEW_TOKENS}
    for name, new in NEW_TOKENS.items():  # check all sets before the first one is generated
        argument = f"data ({', '.join(_SOURCES[name][:2])})"
        check_positions(model, [prompt_example(ids) for ids in prompts[name]], new, argument, len(prompts[name]))
    scores: Scores = {}
    texts = {}
    done = 0
    for name, new in NEW_TOKENS.items():
        generated = continue_prompts(model, prompts[name], text_format, new, batch_size, continued(progress, done))
        if name != "verbmem":
            generated = [cut_answer(text) for text in generated]
        right = references(name, sets, tokenizer)
        warn_of_wordless(name, right)
        texts[name] = [list(pair) for pair in zip(generated, right, strict=True)]
        scores[name] = {"rougeL": [rouge_l_f1(said, right) for said, right in texts[name]]}
        done += len(generated)
    private = {name: _encode_whole(name, sets[name], tokenizer, limit) for name in ("forget", "holdout")}
    scores |= leakage_scores(model, private, text_format, batch_size, progress=continued(progress, done))
    return scores, texts


def text_count(sets: Sets) -> int:
    """Return the number of texts that `evaluate_muse` reports to `progress` in total."""
    return sum(len(sets[name]) for name in (*NEW_TOKENS, "forget", "holdout"))


def _prompts(name: str, sets: Sets) -> list[str]:
    """Return the text that the model continues for each row of the set."""
    if name == "verbmem":
        return [row["prompt"] for row in sets[name]]
    return [knowledge_prompt(row["question"], sets[f"{name}_icl"]) for row in sets[name]]


def references(name: str, sets: Sets, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the right texts: the answers, or as many first tokens of the true text as the model may generate."""
    from unlora.data.encoding import encode_text
    from unlora.models.generation import decode

    if name != "verbmem":
        return [row["answer"] for row in sets[name]]
    return [decode(encode_text(row["gt"], tokenizer)[: NEW_TOKENS[name]], tokenizer) for row in sets[name]]


def _encode_whole(
    name: str, rows: Sequence[Record], tokenizer: PreTrainedTokenizerFast, limit: int | None
) -> list[Example]:
    """Return one example per text, labelled everywhere, without an end token, and cut to the model's positions."""
    from unlora.data.encoding import encode_text

    tokens = [encode_text(row["text"], tokenizer) for row in rows]
    if limit is not None and (cut := sum(len(ids) > limit for ids in tokens)):
        logger.warning("privleak.%s: %d of %d texts were cut to the model's %d positions", name, cut, len(rows), limit)
    return [{"input_ids": ids[:limit], "labels": ids[:limit]} for ids in tokens]


def summarise_muse(scores: Scores, retrained: Scores | None = None) -> dict[str, Any]:
    """Return the metrics of scores as plain JSON values.

    Args:
        scores: of the model to judge.
        retrained: of a model trained without the forget set, on the same sets.

    Returns:
        By name:

        - `verbmem_f` (C1), `knowmem_f` (C2), `knowmem_r` (C4): mean ROUGE-L F1 times 100.
        - `privleak` (C3): in percent, with Min-40%; "not available" without `retrained`, or if that tells the sets
          apart perfectly, as it may where they have few rows.
        - `membership`: by attack (Min-40%, Min-20%), auc, standard_error and privleak.
        - `examples`: the number of examples of each set.

    Raises:
        InputError: as `summarise_leakage`.
    """
    attacks: dict[str, Any] = {}
    if "forget" in scores:
        leakage = summarise_leakage(scores, retrained)["membership"]
        attacks = {name: leakage[name] for name in PRIVLEAK_ATTACKS}
    for attack in attacks.values():
        if attack["privleak"] is None:
            attack["privleak"] = NOT_AVAILABLE
    known = {metric: name for metric, name in ROUGE_METRICS.items() if name in scores}
    rouge = {metric: finite_values(name, scores[name]["rougeL"]) for metric, name in known.items()}
    means = {metric: 100 * float(values.mean()) for metric, values in rouge.items()}
    return {
        **{metric: means.get(metric, NOT_AVAILABLE) for metric in ROUGE_METRICS},
        "privleak": attacks[PRIVLEAK_ATTACKS[0]]["privleak"] if attacks else NOT_AVAILABLE,
        "membership": attacks,
        "examples": {name: len(next(iter(columns.values()))) for name, columns in scores.items()},
    }


def read_muse_scores(path: str | Path, sets: Sets, argument: str = "retrained") -> Scores:
    """Read the retrained model's scores from a log of `unlora evaluate --benchmark muse` on the same sets.

    Raises:
        InputError: no such log, or a log of other rows.
    """
    scores = read_scores(path, argument, sets)
    _check_sets(scores, path, argument)
    check_retrained(scores, {name: len(sets[name]) for name in ("forget", "holdout")})
    return scores


def _check_sets(scores: Scores, path: str | Path, argument: str) -> None:
    if not scores.keys() >= set(NEW_TOKENS):
        reason, fix = "it has no scores of MUSE's sets", "give a log of `unlora evaluate --benchmark muse`"
        raise InputError(Problem(argument, str(path), reason, fix))


MUSE = Muse()
