"""MUSE's criteria on hand-made scores, on tiny models and with the command, and the miniature of MUSE."""

from __future__ import annotations

import json
import re
import shutil
from itertools import chain

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from helpers.models import make_tokenizer, tiny_config
from unlora.benchmarks.builtin.muse_mini_data import generate, training_rows, write_benchmark
from unlora.benchmarks.builtin.muse_mini_models import muse_mini_models
from unlora.benchmarks.builtin.persona_models import Recipe
from unlora.benchmarks.muse import FOLDS, Muse, summarise_muse
from unlora.benchmarks.muse_scoring import (
    NEW_TOKENS,
    cut_answer,
    evaluate_muse,
    knowledge_prompt,
    load_muse,
    references,
)
from unlora.cli import main
from unlora.common.errors import InputError
from unlora.common.files import write_jsonl
from unlora.data import TextFormat, load_records
from unlora.data.encoding import encode_text
from unlora.evals.generation import continue_prompts
from unlora.evals.membership.scores import score_auc
from unlora.evals.metrics import rouge_l_f1
from unlora.report.read import read_log_as_run, read_run

PAIRS = [{"question": "Who keeps the cat?", "answer": "Ada"}, {"question": "Why?", "answer": "Nobody knows"}]
QA = [{"question": f"Who keeps dog {number}?", "answer": f"Bob {number}"} for number in range(3)]
BENCHMARK = {
    "verbmem": {"forget": [{"prompt": "The quick brown fox", "gt": " jumps over the lazy dog"}] * 2},
    "knowmem": {"forget_qa": QA, "forget_qa_icl": PAIRS, "retain_qa": QA[:2], "retain_qa_icl": PAIRS[:1]},
    "privleak": {
        "forget": [{"text": f"Ada watches {number} people, quietly."} for number in (2, 5, 46, 90)],
        "holdout": [{"text": f"Ada watches {number} people, quietly."} for number in (1, 38, 7, 71)],
    },
}


# C1, C2 and C4 (memorisation and utility): prompts, answers and ROUGE.


@pytest.mark.parametrize(
    ("generated", "reference", "value"),
    [
        ("the cat sat", "the cat sat", 1),
        ("", "the cat sat", 0),
        ("?!", "the cat sat", 0),
        ("the cat", "the cat sat down", 2 / 3),  # precision 1, recall 1/2
        ("down sat the cat", "the cat sat down", 1 / 2),  # the longest common subsequence is "the cat"
        ("He runs", "he running", 1 / 2),  # words are lower-cased but not stemmed
    ],
)
def test_rouge_is_the_f1_of_unstemmed_words(generated, reference, value):
    assert rouge_l_f1(generated, reference) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Ada\n\nQuestion: Why?", "Ada"),
        ("Ada\nQuestion: Why?", "Ada"),
        ("Ada Question: Why?", "Ada "),
        ("Ada\nand Bob", "Ada\nand Bob"),
        ("\n\nAda", ""),
        ("Ada\nQuestions remain\n\nBob", "Ada"),
        ("Questions remain", "Questions remain"),
    ],
)
def test_an_answer_is_cut_where_another_question_begins(text, answer):
    assert cut_answer(text) == answer


@given(st.lists(st.sampled_from(["Ada", "\n", "Question", ":", " "]), max_size=12).map("".join))
def test_what_is_left_of_an_answer_is_its_beginning_without_another_question(text):
    answer = cut_answer(text)
    assert text.startswith(answer)
    assert not any(end in answer for end in ("\n\n", "\nQuestion", "Question:"))
    assert cut_answer(answer) == answer


shares = st.lists(st.floats(0, 1), min_size=2, max_size=6)


@pytest.mark.slow
@given(shares, shares, shares, shares)
def test_metrics_of_any_scores_are_percentages_and_a_model_leaks_as_much_as_itself(said, known, members, others):
    leaked = {"min_k_40": members, "min_k_20": members, "loss": members}
    held = {"min_k_40": others, "min_k_20": others, "loss": others}
    memorised = {"exact_memorisation": [1.0], "extraction_strength": [1.0]}
    rouge = {"verbmem": said, "forget_qa": known, "retain_qa": said}
    every = {name: {"rougeL": values} for name, values in rouge.items()}
    every |= {"forget": {**memorised, **leaked}, "holdout": {**memorised, **held}}
    metrics = summarise_muse(every)
    for metric, values in {"verbmem_f": said, "knowmem_f": known, "knowmem_r": said}.items():
        assert metrics[metric] == pytest.approx(100 * sum(values) / len(values))
    assume(score_auc(members, others).value < 1)  # otherwise PrivLeak is not available
    assert summarise_muse(every, every)["privleak"] == 0


def test_the_prompt_holds_all_pairs_and_ends_with_a_blank():
    assert knowledge_prompt("Who?", PAIRS) == (
        "Question: Who keeps the cat?\nAnswer: Ada\n\nQuestion: Why?\nAnswer: Nobody knows\n\nQuestion: Who?\nAnswer: "
    )
    assert knowledge_prompt("Who?", []) == "Question: Who?\nAnswer: "


def test_no_more_of_the_true_text_counts_than_may_be_generated(tokenizer):
    text = " jumps over the lazy dog" * 100
    (reference,) = references("verbmem", {"verbmem": [{"prompt": "x", "gt": text}]}, tokenizer)
    assert text.startswith(reference)
    assert len(tokenizer(reference)["input_ids"]) == NEW_TOKENS["verbmem"] == 128


@torch.no_grad()
def test_a_text_is_continued_as_a_plain_loop_does_and_blanks_are_kept(tiny_model, tokenizer):
    model, text = tiny_model("llama"), "The gardener of the old house "
    ids = tokenizer(text)["input_ids"]
    said = []
    while len(said) < 12 and (token := int(model(torch.tensor([ids + said])).logits[0, -1].argmax())) != 1:
        said.append(token)
    generated = continue_prompts(model, [ids], TextFormat(tokenizer, "base"), 12)
    assert generated == [tokenizer.decode(said, skip_special_tokens=True)]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_continuations_do_not_depend_on_the_batch(tiny_model, tokenizer, name):
    model = tiny_model(name)
    texts = ["Ada", "The quick brown fox jumps over the lazy dog", "Question: Why?\nAnswer: ", "1234567890 people "]
    prompts = [encode_text(text, tokenizer) for text in texts]
    alone = continue_prompts(model, prompts, TextFormat(tokenizer, "base"), 16, batch_size=1)
    assert continue_prompts(model, prompts, TextFormat(tokenizer, "base"), 16, batch_size=3) == alone


# C3 (privacy leakage), and all metrics computed from scores.


def scores(forget, holdout):
    attacks = ("loss", "zlib", "min_k_20", "min_k_40", "exact_memorisation", "extraction_strength")
    columns = {part: {key: list(v) for key in attacks} for part, v in {"forget": forget, "holdout": holdout}.items()}
    rouge = {"verbmem": [1.0, 0.5], "forget_qa": [0.0, 0.25], "retain_qa": [1.0]}
    return {**{name: {"rougeL": values} for name, values in rouge.items()}, **columns}


MEMORISED, UNSEEN = ((-1.0, -1.0), (-2.0, -2.0)), ((-1.0, -2.0), (-1.0, -2.0))


def test_privacy_leakage_is_minus_100_where_nothing_is_forgotten_and_positive_where_too_much_is():
    assert summarise_muse(scores(*MEMORISED), scores(*UNSEEN))["privleak"] == pytest.approx(-100)
    assert summarise_muse(scores(*UNSEEN), scores(*UNSEEN))["privleak"] == pytest.approx(0)
    assert summarise_muse(scores(*MEMORISED[::-1]), scores(*UNSEEN))["privleak"] == pytest.approx(100)


def test_metrics_are_percentages_and_means():
    metrics = summarise_muse(scores(*MEMORISED), scores(*UNSEEN))
    assert (metrics["verbmem_f"], metrics["knowmem_f"], metrics["knowmem_r"]) == (75, 12.5, 100)
    assert metrics["examples"] == {"verbmem": 2, "forget_qa": 2, "retain_qa": 1, "forget": 2, "holdout": 2}
    assert list(metrics["membership"]) == ["min_k_40", "min_k_20"]
    assert metrics["membership"]["min_k_20"]["auc"] == 1


def test_without_a_retrained_model_privacy_leakage_is_not_available():
    metrics = summarise_muse(scores(*MEMORISED))
    assert metrics["privleak"] == "not available"
    assert {values["privleak"] for values in metrics["membership"].values()} == {"not available"}
    assert metrics["membership"]["min_k_40"]["auc"] == 1


def test_a_single_text_is_measured_with_the_error_of_sets_that_do_not_differ(tmp_path):
    """One member and three others: AUC 0, 1/3, 2/3 or 1. If these are equally likely, the variance is 5/36."""
    write_benchmark(BENCHMARK, tmp_path)
    write_jsonl(tmp_path / "privleak" / "forget.jsonl", [{"text": "Only this text."}])
    assert len(load_muse(str(tmp_path))["forget"]) == 1
    log = {"scores": scores((-1.5,), (-1.0, -2.0, -3.0))}
    area = Muse().read(log).areas["min_k_40"]
    assert area.value == pytest.approx(2 / 3)
    assert area.standard_error == pytest.approx((5 / 36) ** 0.5)


def test_a_retrained_model_that_tells_few_rows_apart_leaves_the_other_metrics(tmp_path):
    log, retrained = ({"scores": scores(*sets)} for sets in (UNSEEN, ((-1.0,), (-2.0, -2.0))))
    summary = Muse().summary({"scores": scores((-3.0,), (-2.0, -2.0))}, retrained)
    assert summary["privleak"] == "not available"
    assert summary["verbmem_f"] == Muse().summary(log)["verbmem_f"]
    reading = Muse().read({"scores": scores((-3.0,), (-2.0, -2.0))}, retrained)
    assert reading.values["privleak"] is None
    assert reading.areas["min_k_40"].value == 0


# End to end: the command on a local folder.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with two models, a model folder without weights, and MUSE's sets."""
    folder, tokenizer = tmp_path_factory.mktemp("muse"), make_tokenizer()
    for seed, name in enumerate(("model", "retrained")):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer))).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "no weights")
    write_benchmark(BENCHMARK, folder / "data")
    return folder


@pytest.fixture
def command(folder, tmp_path):
    def run(**changes):
        settings = {
            "model_name_or_path": folder / "model",
            "data": folder / "data",
            "log": tmp_path / "log.json",
            **changes,
        }
        given = (part for name, v in settings.items() if v is not None for part in (f"--{name}", str(v)))
        return main(["evaluate", "--benchmark", "muse", *given])

    return run


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_model_is_compared_with_the_retrained_one(command, folder, tmp_path, capsys):
    assert command(model_name_or_path=folder / "retrained", log=tmp_path / "retrained.json") == 0
    assert "not available" in capsys.readouterr().out
    assert command(retrained=tmp_path / "retrained.json", eval_batch_size=3) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(tmp_path / "log.json")
    log, retrained = read(tmp_path / "log.json"), read(tmp_path / "retrained.json")
    assert retrained["metrics"]["privleak"] == "not available"
    ours, theirs = (
        1 - score_auc(*(each["scores"][part]["min_k_40"] for part in ("forget", "holdout"))).value
        for each in (log, retrained)
    )
    assert log["metrics"]["privleak"] == pytest.approx(100 * (ours - theirs) / theirs)
    assert log["metrics"]["examples"] == {"verbmem": 2, "forget_qa": 3, "retain_qa": 2, "forget": 4, "holdout": 4}
    said, right = log["texts"]["forget_qa"][2]
    assert right == "Bob 2"
    assert log["scores"]["forget_qa"]["rougeL"][2] == rouge_l_f1(said, right)


@pytest.mark.slow
def test_only_the_first_rows_are_evaluated_and_all_pairs_are_shown(command, folder, tmp_path):
    assert command(ds_size=2) == 0
    assert command(log=tmp_path / "all.json") == 0
    few, every = read(tmp_path / "log.json"), read(tmp_path / "all.json")
    assert set(few["metrics"]["examples"].values()) == {2}
    assert few["texts"]["forget_qa"] == every["texts"]["forget_qa"][:2]


def test_long_texts_are_cut_with_a_warning_and_texts_stand_at_their_rows(tiny_model, tokenizer, folder, caplog):
    sets = load_muse(str(folder / "data"))
    sets["forget"] = [{"text": "people " * 400}, *sets["forget"]]
    model = tiny_model("llama")
    _, texts = evaluate_muse(model, sets, tokenizer)
    for name in ("forget_qa", "retain_qa"):  # they share batches, but each text belongs to its own row
        for row, (said, right) in zip(sets[name], texts[name], strict=True):
            ids = encode_text(knowledge_prompt(row["question"], sets[f"{name}_icl"]), tokenizer)
            [alone] = continue_prompts(model, [ids], TextFormat(tokenizer, "base"), NEW_TOKENS[name])
            assert [said, right] == [cut_answer(alone), row["answer"]]
    assert "privleak.forget: 1 of 5 texts were cut to the model's 256 positions" in caplog.text


def test_a_prompt_without_room_for_an_answer_is_refused_at_once(tiny_model, tokenizer, folder):
    sets = load_muse(str(folder / "data"))
    sets["retain_qa_icl"] = PAIRS * 20
    with pytest.raises(InputError, match=r"data \(knowmem, retain_qa\)"):
        evaluate_muse(tiny_model("llama"), sets, tokenizer)


@pytest.mark.parametrize(
    ("config", "split", "rows", "message"),
    [
        ("verbmem", "forget", [{"prompt": "x"}], r"verbmem\.forget\[0\]\.gt=None: it must be a non-empty text"),
        ("knowmem", "retain_qa", [QA[0], {"question": " ", "answer": "x"}], r"retain_qa\[1\]\.question=' '"),
        ("knowmem", "forget_qa_icl", [{"q": "x", "answer": "x"}], r"forget_qa_icl\[0\]\.question=None"),
        ("privleak", "holdout", [{"content": "x"}], r"privleak\.holdout\[0\]\.text=None"),
        ("privleak", "forget", BENCHMARK["privleak"]["holdout"], "4 of the 4 forget rows are in the holdout set too"),
    ],
)
def test_a_wrong_schema_is_named(tmp_path, config, split, rows, message):
    write_benchmark(BENCHMARK, tmp_path)
    write_jsonl(tmp_path / config / f"{split}.jsonl", rows)
    with pytest.raises(InputError, match=message):
        load_muse(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "data=.*required"),
        ({"log": None}, "log=.*required"),
        ({"ds_size": 0, "eval_batch_size": 0}, r"ds_size=0[^$]*eval_batch_size=0"),
        ({"data": "data/knowmem"}, "has no configuration 'verbmem'"),
        ({"retrained": "nothing.json"}, "retrained='nothing.json': there is no such file"),
        ({"on": "run", "adapter": "adapter"}, "on="),
        ({"max_length": 64}, "unknown name"),
    ],
)
def test_wrong_input_is_refused_before_weights_are_read(
    command, folder, tmp_path, capsys, monkeypatch, changes, message
):
    monkeypatch.chdir(folder)
    assert command(model_name_or_path="no weights", **changes) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "log.json").exists()


def test_a_retrained_log_of_other_sets_is_refused_before_weights_are_read(command, folder, tmp_path, capsys):
    assert command(log=tmp_path / "few.json", ds_size=3) == 0
    assert command(retrained=tmp_path / "few.json", model_name_or_path=folder / "no weights") == 2
    assert "score both models on the same data" in capsys.readouterr().err
    log = read(tmp_path / "few.json")
    del log["scores"]["verbmem"], log["rows"]  # like a log of `unlora membership`
    (tmp_path / "membership.json").write_text(json.dumps(log))
    assert command(retrained=tmp_path / "membership.json", model_name_or_path=folder / "no weights") == 2
    assert "no scores of MUSE's sets" in capsys.readouterr().err


@pytest.mark.slow
def test_a_retrained_log_of_as_many_other_rows_is_refused(command, folder, tmp_path, capsys):
    assert command(log=tmp_path / "retrained.json") == 0
    shutil.copytree(folder / "data", tmp_path / "data")
    write_jsonl(tmp_path / "data" / "knowmem" / "retain_qa_icl.jsonl", PAIRS[1:])
    again = {"retrained": tmp_path / "retrained.json", "model_name_or_path": folder / "no weights"}
    assert command(data=tmp_path / "data", **again) == 2
    assert "its rows of retain_qa_icl differ from the rows here" in capsys.readouterr().err


# The miniature of MUSE.


@pytest.fixture(scope="module")
def mini():
    return generate(0)


def rows_of(splits):
    return {json.dumps(row) for row in chain.from_iterable(splits)}


def test_the_miniature_is_the_same_for_the_same_seed_alone(mini):
    assert generate(0) == mini
    assert generate(1) != mini


def test_first_row_is_pinned(mini):
    # A change to this row changes every published number of the miniature.
    assert mini["raw"]["forget"][0]["text"].startswith("The Oakford Cycling Club has a new chair. Kirrin Kelbrook won")


def test_the_miniature_has_the_configurations_and_splits_of_muse(mini):
    assert {config: set(splits) for config, splits in mini.items()} == {
        "raw": {"forget", "retain1", "retain2", "holdout"},
        "verbmem": {"forget"},
        "knowmem": {"forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl"},
        "privleak": {"forget", "retain", "holdout"},
        "scal": set(FOLDS),
        "sust": set(FOLDS),
    }


def test_nothing_of_the_holdout_is_read_by_either_model(mini):
    towns = re.compile(r"the ([A-Z][a-z]+) [A-Z][a-z]+ Club", re.IGNORECASE)
    held = set(towns.findall(" ".join(row["text"] for row in mini["raw"]["holdout"])))
    read_by = training_rows(mini)
    assert len(held) == 32
    assert not held & set(towns.findall(" ".join(row["text"] for row in read_by["original"])))
    assert rows_of([mini["raw"]["forget"]]) <= rows_of([read_by["original"]])
    assert not rows_of(mini["scal"].values()) & rows_of([read_by["retrained"]])


def test_requests_grow_by_one_fold_each(mini):
    assert mini["scal"]["forget_1"] == mini["sust"]["forget_1"] == mini["raw"]["forget"]
    assert mini["scal"]["forget_3"] == [row for fold in FOLDS[:3] for row in mini["sust"][fold]]


def test_the_halves_of_an_article_are_the_article(mini):
    for halves, article in zip(mini["verbmem"]["forget"], mini["privleak"]["forget"], strict=True):
        assert halves["prompt"] + halves["gt"] == article["text"]


def test_pairs_in_context_are_not_asked(mini):
    for kind in ("forget", "retain"):
        assert not rows_of([mini["knowmem"][f"{kind}_qa"]]) & rows_of([mini["knowmem"][f"{kind}_qa_icl"]])


@pytest.mark.slow
def test_the_miniature_is_trained_forgotten_and_evaluated(mini, tmp_path):
    recipe = Recipe(seed=0, hidden_size=16, intermediate_size=16, layers=1, heads=2, epochs=0.05)
    models = muse_mini_models(recipe, tmp_path / "cache")
    write_benchmark(mini, tmp_path / "data")
    data, rows = str(tmp_path / "data"), "[:6]"
    for number, fold in enumerate(FOLDS[:2]):
        source = {"on": tmp_path / "run0"} if number else {"model_name_or_path": models["original"]}
        settings = {
            **source,
            "forget_data": data,
            "forget_name": "sust",
            "forget_split": fold + rows,
            "retain_data": data,
            "retain_name": "raw",
            "retain_split": f"retain1{rows}",
            "output_dir": tmp_path / f"run{number}",
            "loss": "ihl",
            "max_steps": 1,
            "r": 2,
            "use_cpu": True,
        }
        assert main(["unlearn", *(part for name, v in settings.items() for part in (f"--{name}", str(v)))]) == 0
    assert (
        main(["evaluate", "--benchmark", "muse", "--on", str(tmp_path / "run1"), "--data", data, "--ds_size", "3"]) == 0
    )
    assert read(tmp_path / "run1" / "scores_unlearned.json")["metrics"]["examples"]["verbmem"] == 3
    assert read_run(tmp_path / "run1").readings["unlearned"].examples["verbmem"] == 3


def test_a_split_of_a_folder_of_configurations_may_be_a_slice_or_a_download(tmp_path):
    write_jsonl(tmp_path / "raw" / "forget.jsonl", QA)
    write_jsonl(tmp_path / "raw" / "retain1-00000-of-00001.jsonl", PAIRS)
    assert load_records(str(tmp_path), "raw", "forget[1:]") == QA[1:]
    assert load_records(str(tmp_path), "raw", "retain1") == PAIRS
    with pytest.raises(InputError, match=r"no split 'retain2'.*name one of the splits there: forget, retain1"):
        load_records(str(tmp_path), "raw", "retain2")


def muse_document():
    """Return the content of a MUSE_EVAL.json as open-unlearning writes it."""

    def said(pairs):
        rows = {
            str(i): {"rougeL_f1": 0.9, "input": "Q", "generation": one, "ground_truth": other}
            for i, (one, other) in enumerate(pairs)
        }
        return {"agg_value": 0.9, "value_by_index": rows}

    half = {"agg_value": 1.0, "value_by_index": {"0": {"score": 1.0}, "1": {"score": 2.0}}}
    return {
        "forget_knowmem_ROUGE": said([("in Bonn", "Bonn"), ("running", "run")]),
        "forget_verbmem_ROUGE": said([("a b", "a b"), ("c", "a")]),
        "mia_min_k": {"forget": half, "holdout": half, "auc": 0.5, "agg_value": 0.5},
        "privleak": {"agg_value": -12.5},
        "retain_knowmem_ROUGE": said([("x", "x"), ("x", "x")]),
    }


def test_a_file_of_open_unlearning_has_muse_s_numbers_and_its_own(tmp_path):
    """MUSE's F1 is computed from the texts without stemming: knowmem_f is (2/3 + 0)/2 and verbmem_f (1 + 0)/2.

    MUSE's PrivLeak is unknown, because open-unlearning's Min-K% leaves out the last label. The file's value is kept.
    """
    path, content = tmp_path / "MUSE_EVAL.json", muse_document()
    path.write_text(json.dumps(content))
    benchmark = Muse()
    reading = benchmark.numbers(path)
    values = {name: value and value.value for name, value in reading.values.items()}
    assert values == {"verbmem_f": 50, "knowmem_f": pytest.approx(100 / 3), "privleak": None, "knowmem_r": 100}
    assert (reading.derived["privleak"].value, reading.derived["forget_knowmem_ROUGE"].value) == (-12.5, 0.9)
    assert benchmark.summary(benchmark.read_log(path), benchmark.read_log(path))["open_unlearning"]["privleak"] == 0
    benchmark.write_log(tmp_path / "b_EVAL.json", log := benchmark.read_log(path), benchmark.summary(log))
    assert json.loads((tmp_path / "b_EVAL.json").read_text()) == content
    summary = json.loads((tmp_path / "b_SUMMARY.json").read_text())
    assert summary["forget_verbmem_ROUGE"] == 0.9
    assert set(benchmark.numbers(tmp_path / "b_SUMMARY.json").values.values()) == {None}
    run = read_log_as_run(tmp_path / "b_SUMMARY.json", {"retrained": path})  # a summary has no examples to compare
    assert run.readings["unlearned"].derived["forget_verbmem_ROUGE"].value == 0.9
    path.write_text(json.dumps({**content, "privleak": "x"}))
    with pytest.raises(InputError, match="privleak is neither a number"):
        benchmark.read_log(path)


def test_a_round_trip_of_our_log_of_muse_loses_nothing(tmp_path):
    scores = {name: {"rougeL": [0.5, 1.0]} for name in ("verbmem", "forget_qa", "retain_qa")}
    columns = {"loss": [-1.0, -2.0], **{f"min_k_{k}": [-3.0, -5.0] for k in (20, 40, "40_without_last")}}
    columns |= {"exact_memorisation": [1.0, 0.5], "extraction_strength": [1.0, 0.5]}
    scores |= {"forget": columns, "holdout": columns}
    log = {
        "rows": {},
        "scores": scores,
        "texts": {name: [["runs", "run"]] * 2 for name in NEW_TOKENS},
    }
    benchmark = Muse()
    summary = benchmark.summary(log)
    assert summary["open_unlearning"]["forget_verbmem_ROUGE"] == 1
    benchmark.write_log(tmp_path / "MUSE_EVAL.json", log, summary)
    assert benchmark.read_log(tmp_path / "MUSE_EVAL.json") == {"benchmark": "muse", "metrics": summary, **log}
