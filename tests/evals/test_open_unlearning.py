"""Tests of reading open-unlearning's files as logs, and of writing logs as its files."""

import json
import math

import pytest

from unlora.benchmarks import OWN_SETS
from unlora.cli import main
from unlora.common.errors import InputError
from unlora.evals import evaluate, read_log, summarise, write_log
from unlora.evals.log_format import FILES, TASKS
from unlora.evals.membership.readings import example_scores
from unlora.evals.open_unlearning import KEPT, OWN, from_document, numbers, to_document
from unlora.settings import EvalSettings

HALF, QUARTER = math.log(2), math.log(4)


def scored(losses):
    rows = {str(i): {"prob": probability(loss), "avg_loss": loss} for i, loss in enumerate(losses)}
    return {"agg_value": 0.5, "value_by_index": rows}


def probability(loss):
    return [math.exp(-one) for one in loss] if isinstance(loss, list) else math.exp(-loss)


def rouge(prefix, recalls):
    rows = {
        str(i): {
            "rouge1_recall": recall,
            "rougeL_f1": 0.25,
            "rougeL_recall": recall,
            "input": f"user\n\n{prefix} {i}?",
            "ground_truth": f"answer {i}",
            "generation": f"said {i}",
        }
        for i, recall in enumerate(recalls)
    }
    return {"agg_value": sum(recalls) / len(recalls), "value_by_index": rows}


def document():
    """Return the content of a TOFU_EVAL.json as open-unlearning writes it.

    Each set has two examples. Those of world facts have a single wrong answer each.
    """
    truth = {"agg_value": 0.5, "value_by_index": {"0": {"score": 0.5}, "1": {"score": 0.5}}}
    entries = {
        "model_utility": {"agg_value": 0.625},
        "forget_quality": {"agg_value": None},
        "forget_Q_A_gibberish": {"agg_value": 0.9, "value_by_index": {"0": {"score": 0.9, "generation": "said 0"}}},
        "exact_memorization": {"agg_value": 0.8, "value_by_index": {"0": {"score": 0.8}, "1": {"score": None}}},
        "mia_min_k": {
            "forget": {"agg_value": 1.0, "value_by_index": {"0": {"score": 1.0}}},
            "holdout": {"agg_value": 2.0, "value_by_index": {"0": {"score": 2.0}}},
            "auc": 0.75,
            "agg_value": 0.75,
        },
    }
    for name in ("forget", "retain"):
        entries |= {f"{name}_Q_A_Prob": scored([HALF, QUARTER]), f"{name}_Q_A_PARA_Prob": scored([HALF, HALF])}
        entries[f"{name}_Q_A_PERT_Prob"] = scored([[QUARTER, QUARTER], [QUARTER, HALF]])
        entries[f"{name}_Q_A_ROUGE"] = rouge(name, [1.0, 0.5])
    for name, wrong in {"ra": [[QUARTER, QUARTER], [HALF, HALF]], "wf": [QUARTER, HALF]}.items():
        entries |= {f"{name}_Q_A_Prob": scored([HALF, QUARTER]), f"{name}_Q_A_PERT_Prob": scored(wrong)}
        entries |= {f"{name}_Q_A_ROUGE": rouge(name, [1.0, 1.0]), f"{name}_Truth_Ratio": truth}
    return dict(sorted(entries.items()))


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_their_rows_are_read_in_the_order_of_their_numbers(tmp_path):
    entry = scored([HALF] * 11)
    entry["value_by_index"] = dict(sorted(entry["value_by_index"].items()))  # sorted as text, "10" comes before "2"
    log = read_log(write(tmp_path / "TOFU_EVAL.json", {"forget_Q_A_Prob": entry}))
    assert all(list(column) == [str(index) for index in range(11)] for column in log[TASKS["forget"]].values())


def test_a_file_of_theirs_has_our_metrics_and_its_own_numbers(tmp_path):
    """The forget answers have P = 1/2 and 1/4.

    The truth ratio of the first is (1/4) / (1/2) = 1/2 with either mean. That of the second is √(1/8) / (1/2) = 1/√2
    with the geometric mean, and (3/8) / (1/2) = 3/4 with the arithmetic mean.
    """
    log = read_log(write(tmp_path / "TOFU_EVAL.json", document()))
    summary = OWN_SETS.summary(log)
    forget = summary["sets"]["forget"]
    assert forget["probability"] == pytest.approx(3 / 8)
    assert forget["rougeL_recall"] == 0.75
    assert forget["truth_ratio"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert forget["truth_ratio_geometric"] == pytest.approx((1 / 2 + 1 / math.sqrt(2)) / 2)
    assert summary["sets"]["world_facts"]["probability"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert len(summary["utility_terms"]) == 9
    theirs = summary["open_unlearning"]
    assert (theirs["model_utility"], theirs["exact_memorization"], theirs["mia_min_k"]) == (0.625, 0.8, 0.75)
    assert theirs["forget_truth_ratio_prob_mean"] == pytest.approx((2 / 3 + 1 / (1 + 1 / math.sqrt(2))) / 2)
    assert log[TASKS["forget"]]["generated_text"]["1"] == ["user\n\nforget 1?", "said 1", "answer 1"]


@pytest.mark.parametrize("changed", [False, True])
def test_a_round_trip_of_a_file_of_theirs_loses_nothing(tmp_path, changed):
    content = document()
    content = {"own_metric": {"agg_value": 0.5, "rows": [None, {"a": [math.inf]}]}, "note": "text", "n": [1], **content}
    content["forget_Q_A_ROUGE"]["value_by_index"] = dict(
        reversed(content["forget_Q_A_ROUGE"]["value_by_index"].items())
    )
    log = read_log(write(tmp_path / "TOFU_EVAL.json", content))
    if changed:  # as if an evaluation had judged the answers
        log[TASKS["forget"]]["fact_recall"] = {"0": 1.0, "1": None}
    write_log(log, tmp_path / "ours.json")
    write_log(read_log(tmp_path / "ours.json"), tmp_path / "again" / "TOFU_EVAL.json")
    back = json.loads((tmp_path / "again" / "TOFU_EVAL.json").read_text())
    assert {metric: entry for metric, entry in back.items() if metric != OWN} == content
    assert (OWN in back) is changed
    assert read_log(tmp_path / "again" / "TOFU_EVAL.json") == log
    summary = json.loads((tmp_path / "again" / "TOFU_SUMMARY.json").read_text())
    assert summary["model_utility"] == 0.625
    assert "forget_quality" not in summary


def test_a_round_trip_of_our_log_loses_nothing(tiny_model, base, tmp_path):
    rows = [
        {"question": f"Q{i}?", "answer": f"Answer {i} it is.", "perturbed_answer": ["no", "no way"]} for i in (0, 1)
    ]
    other = {"paraphrased_answer": "So it is.", "perturbed_answer": ["no", "no way"]}
    unseen = [{"question": f"U{i}?", "answer": f"Unseen {i} it is.", **other} for i in (0, 1, 2)]
    sets = dict.fromkeys(TASKS, rows) | {"holdout": unseen}
    log = evaluate(tiny_model("llama"), sets, base, EvalSettings(max_new_tokens=2))
    write_log(log, tmp_path / "TOFU_EVAL.json")
    assert read_log(tmp_path / "TOFU_EVAL.json") == log
    # Metrics that open-unlearning adds to the file later are kept as well.
    content = json.loads((tmp_path / "TOFU_EVAL.json").read_text()) | {"privleak": {"agg_value": -3.0}}
    added = read_log(write(tmp_path / "more_EVAL.json", content))
    assert added == {**log, KEPT: {"privleak": {"agg_value": -3.0}}}
    assert to_document(added) == content
    assert numbers(added)["privleak"] == -3
    assert summarise(log)["sets"].keys() == TASKS.keys()


def test_a_summary_has_its_numbers_in_the_columns_of_a_table(tmp_path):
    content = {"forget_quality": 0.01, "model_utility": 0.6, "forget_Q_A_Prob": 0.25, "retain_Q_A_Prob": 0.75}
    path = write(tmp_path / "TOFU_SUMMARY.json", content)
    values = {name: value and value.value for name, value in OWN_SETS.numbers(path).values.items()}
    assert values == {
        "log10 forget quality": -2,
        "model utility": None,
        "model utility, geometric": 0.6,
        "forget probability": 0.25,
        "forget ROUGE-L recall": None,
        "retain probability": 0.75,
    }
    path = write(tmp_path / "TOFU_SUMMARY.json", content | {"privleak": None, "own_metric": {"a": 1}, "note": "text"})
    write_log(read_log(path), tmp_path / "b_SUMMARY.json")
    assert json.loads((tmp_path / "b_SUMMARY.json").read_text()) == json.loads(path.read_text())
    assert numbers(read_log(path)) == content
    write_log(read_log(path), tmp_path / "c_EVAL.json")
    assert json.loads((tmp_path / "c_EVAL.json").read_text())["model_utility"] == {"agg_value": 0.6}


def test_no_file_of_theirs_is_replaced(tmp_path, capsys):
    own, summary = write(tmp_path / "TOFU_EVAL.json", document()), write(tmp_path / "b_SUMMARY.json", {"a": 1})
    argv = ["evaluate", "--log", str(own), "--convert", str(tmp_path / "b_EVAL.json")]
    assert main(argv) == 2
    assert f"convert='{summary}': it is already in use" in capsys.readouterr().err
    assert json.loads(summary.read_text()) == {"a": 1}
    assert not (tmp_path / "b_EVAL.json").exists()
    summary.unlink()
    assert main(argv) == 0
    assert "open-unlearning's name" in capsys.readouterr().out
    assert summary.is_file()


def test_their_retrained_log_may_have_only_truth_ratios(tmp_path, capsys):
    scores = {"forget_truth_ratio": {"value_by_index": {"0": {"score": 2.0}, "1": {"score": 0.1}}, "agg_value": 0.3}}
    retrained = write(tmp_path / "retain_EVAL.json", scores)
    own = write(tmp_path / "TOFU_EVAL.json", document())
    flags = ["--log", str(own), "--retrained", str(retrained), "--json"]
    assert main(["evaluate", "--benchmark", "tofu", *flags]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["forget_quality"] == shown["open_unlearning"]["forget_quality"] == pytest.approx(1)


def test_examples_that_they_could_not_score_are_left_out():
    content = document()
    content["forget_Q_A_Prob"]["value_by_index"]["1"] = {"prob": None, "avg_loss": None}
    content["retain_Q_A_ROUGE"]["value_by_index"]["0"] = None
    log = from_document(content)
    assert {tuple(column) for column in log[TASKS["forget"]].values()} == {("0",)}
    assert {tuple(column) for column in log[TASKS["retain"]].values()} == {("1",)}
    assert to_document(log) == content
    # Both logs still count as logs of the same forget set. A log with fewer forget examples is still refused.
    whole = from_document(document())
    assert summarise(log, whole)["forget_quality"] == summarise(whole, log)["forget_quality"] == 1
    del (other := from_document(document()))[KEPT]
    for column in other[TASKS["forget"]].values():
        del column["1"]
    with pytest.raises(InputError, match="retrained='2 forget examples': 1 forget examples are compared"):
        summarise(other, log)


def test_numbers_that_a_file_of_theirs_lacks_are_computed_from_its_examples(tmp_path):
    content = document()
    known = numbers(from_document(content))
    content["forget_Q_A_Prob"]["agg_value"], content["wf_Truth_Ratio"]["agg_value"] = None, math.nan
    content["mia_min_k"] = {"agg_value": None, "auc": None, "error": "GPU out of memory"}
    content["exact_memorization"] = {"agg_value": math.nan, "value_by_index": None}
    theirs = numbers(read_log(write(tmp_path / "TOFU_EVAL.json", content)))
    assert theirs["forget_Q_A_Prob"] == pytest.approx(3 / 8)
    # R = (1/4) / (1/2) = 1/2 and (1/2) / (1/4) = 2, so max(0, 1 − R) is 1/2 and 0.
    assert theirs["wf_Truth_Ratio"] == pytest.approx((1 / 2 + 0) / 2)
    assert known.keys() - theirs.keys() == {"mia_min_k", "exact_memorization"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_utility": "0.6"}, "model_utility is neither a number nor"),
        ({"model_utility": {"agg_value": "0.6"}}, "agg_value of model_utility is not a number"),
        ({"forget_Q_A_Prob": {"value_by_index": [1]}}, "value_by_index of forget_Q_A_Prob is not"),
        ({"forget_Q_A_Prob": {"value_by_index": {"a": {}}}}, "the examples of forget_Q_A_Prob are not numbered"),
        ({"forget_Q_A_Prob": {"value_by_index": {"0": {"avg_loss": "x"}}}}, "avg_gt_loss of .* is not a number"),
        ({"forget_Q_A_Prob": {"value_by_index": {"0": {"avg_loss": math.nan}}}}, "is nan at example 0: the weights"),
        ({TASKS["forget"]: {"own": {"0": math.nan}}}, "cannot be read as JSON .nan is not a finite number"),
        ({"mia_loss": {"forget": 3}}, "value_by_index of mia_loss is not"),
        ({"model_utility": 0.5, "unlora": {"log": {"eval_log.json": [1]}}}, "its entry 'unlora' was not written by"),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_log(write(tmp_path / "TOFU_EVAL.json", content))


def test_older_logs_have_lists_and_single_tasks_stand_alone(tmp_path):
    columns = {"avg_gt_loss": [HALF, QUARTER], "rougeL_recall": [1, 0.5]}
    listed = read_log(write(tmp_path / "old.json", {TASKS["retain"]: columns}))
    assert listed == {TASKS["retain"]: {"avg_gt_loss": {"0": HALF, "1": QUARTER}, "rougeL_recall": {"0": 1, "1": 0.5}}}
    assert read_log(write(tmp_path / "eval_log.json", columns)) == listed
    assert summarise(read_log(write(tmp_path / "eval_log_forget.json", columns)))["sets"].keys() == {"forget"}
    with pytest.raises(InputError, match="under TOFU's own file name"):
        read_log(write(tmp_path / "mine.json", columns))


def test_scores_by_both_definitions():
    """The first example has three labels with log p −4, −1 and −2. The model predicts the last two of them.

    open-unlearning leaves out the last label. So exact memorisation is 2/3 for us and 1/2 for them, and extraction
    strength is 1 − 1/3 and 1 − 1/2. With k = 34, Min-K% is the lowest value in both cases, because 34 % of two or three
    labels is one label. Min-K%++ divides by the standard deviation, which is at least 1e-3 in open-unlearning.
    """
    columns = {
        "gt_token_loss": {"0": [4.0, 1.0, 2.0], "1": [3.0]},
        "gt_token_mean": {"0": [-3.0, -1.0, -1.0], "1": [-1.0]},
        "gt_token_std": {"0": [1e-4, 1.0, 0.5], "1": [1.0]},
        "gt_token_match": {"0": [0, 1, 1], "1": [0]},
        "gt_zlib_bytes": {"0": 7, "1": 1},
    }
    ours, theirs = (example_scores(columns, reading, 34) for reading in ("unlora", "open-unlearning"))
    first = {name: values[0] for name, values in ours.items()}
    expected = {"exact_memorisation": 2 / 3, "extraction_strength": 2 / 3, "loss": -7 / 3, "zlib": -1 / 3, "min_k": -4}
    assert first == pytest.approx({**expected, "min_k_plus_plus": -1e4})
    first = {name: values[0] for name, values in theirs.items()}
    expected |= {"exact_memorisation": 1 / 2, "extraction_strength": 1 / 2, "min_k_plus_plus": -1e3}
    assert first == pytest.approx(expected)
    assert ours["extraction_strength"][1] == 0
    assert (theirs["min_k"][1], theirs["loss"][1]) == (0, -3)
    assert math.isnan(theirs["exact_memorisation"][1])
    assert example_scores(columns, "unlora", 100)["min_k"][0] == pytest.approx(-7 / 3)
    log = {FILES["forget"]: columns, FILES["holdout"]: {**columns, "gt_token_loss": {"0": [5.0, 6.0, 7.0], "1": [2.0]}}}
    assert numbers(log)["mia_loss"] == 0.5  # the AUC of members −7/3 and −3 against others −6 and −2
    assert numbers(log)["exact_memorization"] == 0.5


@pytest.mark.shared_data
def test_the_published_logs_have_both_model_utilities(shared_data, tmp_path):
    log = read_log(shared_data / "tofu_logs" / "phi_full.json")
    summary = summarise(log)
    assert summary["model_utility"] == pytest.approx(0.503353, abs=5e-7)
    assert summary["model_utility_geometric"] == pytest.approx(0.522074, abs=5e-7)
    assert numbers(log)["model_utility"] == pytest.approx(0.522074, abs=5e-7)
    write_log(log, tmp_path / "TOFU_EVAL.json")
    assert read_log(tmp_path / "TOFU_EVAL.json") == log
