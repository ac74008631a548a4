"""The forecast of a run, which is announced before the run starts. With --dry_run, nothing else happens."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from helpers.runs import FORGET, RETAIN, flags, write_rows
from unlora.cli import main
from unlora.data.duplicates import near_duplicates
from unlora.pipeline.forecast import Forecast, planned_updates
from unlora.pipeline.prepare import split_aside


def test_a_dry_run_tells_what_would_be_done_and_writes_nothing(model_folder, data, tmp_path, capsys):
    settings = {"loss": "distil", "init": "lora", "forget_names": "Ada", "until_taught": "true", "max_steps": 100}
    argv = ["unlearn", *flags(model_folder, data, tmp_path / "run", **settings), "--dry_run"]
    assert main([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == {"forget": 4, "retain": 6, "evaluated forget": 4, "evaluated retain": 6}
    assert told["updates"] == [80, 100]
    assert told["names"] == ["Ada"]
    assert set(told["seconds"]) == {"evaluation", "training"}
    assert told["seconds"]["training"][1] == pytest.approx(told["seconds"]["training"][0] * 100 / 80)
    assert told["memory_bytes"] > (model_folder / "model.safetensors").stat().st_size
    assert main(argv) == 0
    assert "updates: 80 to 100" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_rows_with_unequal_numbers_of_wrong_answers_are_refused_before_anything_is_written(
    model_folder, data, tmp_path, capsys
):
    rows = [FORGET[0], {**FORGET[1], "perturbed_answer": ["Nobody."]}]
    write_rows(data / "forget.jsonl", rows)
    assert main(["unlearn", *flags(model_folder, data, tmp_path / "run")]) == 2
    assert "row 0 has 2 wrong answers, this row 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "unseen", "updates"),
    [
        ({"num_train_epochs": 3.0}, False, (9, 9)),
        ({"num_train_epochs": 3.0}, True, (5, 9)),
        ({"max_steps": 4}, True, (4, 4)),
        ({"until_taught": True}, False, (80, 400)),
        ({"until_taught": True, "max_steps": 20}, False, (20, 20)),
    ],
)
def test_updates_by_hand(args, unseen, updates):
    """20 rows in updates of 2 · 4 rows: ceil(20 / 8) = 3 updates per epoch, and 9 in three epochs.

    With unseen rows, training can end at the first stopping test, after 5 updates. With `until_taught`, it takes 80 to
    400 updates, unless `max_steps` is lower.
    """
    usual = {"max_steps": -1, "until_taught": False, "num_train_epochs": 5.0}
    usual |= {"train_batch_size": 2, "gradient_accumulation_steps": 4, "world_size": 1}
    request = SimpleNamespace(args=SimpleNamespace(**usual | args), stopping=SimpleNamespace(stop_every=5))
    assert planned_updates(SimpleNamespace(request=request, trained=[None] * 20, unseen=unseen or None)) == updates


def test_the_announcement_says_that_it_is_an_estimate():
    seconds = {"evaluation": (60.0, 60.0), "training": (300.0, 7200.0)}
    found = Forecast({}, {}, (30, 1200), seconds, 0, [], [], [])
    assert found.announcement() == (
        "expected time: 6 min to 2.0 h, an estimate from a trial: evaluation 60 s, training 5 min to 2.0 h "
        "(30 to 1200 updates, until the goal is reached)"
    )


def test_rows_that_say_nearly_the_same_are_found():
    """Jaccard similarities to a row of ten words, by hand.

    A text that shares nine words and has another one: 9/11. A text with all ten words and one more: 10/11.
    """
    words = "one two three four five six seven eight nine ten"
    row = {"question": "One, two three?", "answer": "Four five six seven eight nine ten."}
    others = [{"text": words.replace("ten", "eleven")}, {"text": f"{words} eleven"}, *RETAIN]
    assert near_duplicates([FORGET[0], row], others) == [(1, 1)]
    assert near_duplicates([row], others[:1]) == []
    assert near_duplicates([{"text": "..."}], [{"text": "!!!"}]) == []


def test_a_tenth_of_a_large_retain_set_is_set_aside():
    rows = [{"question": str(place), "answer": "Yes."} for place in range(95)]
    assert split_aside(rows[:79], None, 0) == ([], rows[:79])
    aside, trained = split_aside(rows, None, 0)
    assert len(aside) == 9
    assert sorted([*aside, *trained], key=lambda row: int(row["question"])) == rows
    assert split_aside([{"text": "x"}] * 95, None, 0)[0] == []
    assert len(split_aside(rows, 3, 0)[0]) == 3


def test_a_place_that_cannot_be_written_to_is_refused_at_once(model_folder, data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", "/proc/run"):
        assert main(["unlearn", *flags(model_folder, data, place)]) == 2
        assert "nothing can be written to" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_to_is_refused_at_once(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/proc/hub")
    assert main(["unlearn", *flags("some/model", data, tmp_path / "run")]) == 2
    assert "set HF_HOME" in capsys.readouterr().err


def test_finetune_and_bench_have_dry_runs(model_folder, data, tmp_path, capsys):
    argv = ["--model_name_or_path", str(model_folder), "--train_data", str(data / "retain.jsonl"), "--use_cpu"]
    out = ["--output_dir", str(tmp_path / "out")]
    assert main(["finetune", *argv, *out, "--num_train_epochs", "2", "--dry_run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["updates"]) == ({"train": 6}, [2, 2])  # 6 < 4 · 8 rows: 1 update per epoch
    methods = ["--methods", "vila+ihl", "lora+npo", "--seeds", "2"]
    assert main(["bench", "persona", *methods, *out, "--dry_run"]) == 0
    assert "4 of 4 cells are to be run, 1 at a time" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
