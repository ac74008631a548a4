"""Reading the rows of a file without type inference, and finding the files of a split in a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from helpers.models import save_tiny_llama
from helpers.runs import write_rows
from unlora.cli import main
from unlora.common.errors import InputError
from unlora.data import Stream, check_rows, load_records

LOOKALIKES = [
    "00731",
    "0170554012",
    "1971-03-02",
    "2011-09-30T12:00:00Z",
    "NA",
    "None",
    "null",
    "true",
    "1e5",
    "-",
    "∞",
]
ROWS = [{"question": f"What is field {i}?", "answer": text} for i, text in enumerate(LOOKALIKES)]


def written(folder, ending, rows=ROWS):
    file = folder / f"set.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif ending == "csv":
        lines = ["question,answer", *(f"{row['question']},{row['answer']}" for row in rows)]
        file.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")  # as spreadsheet programs save it
    else:
        parts = [json.dumps(row) for row in rows]
        file.write_text("\n".join(parts) if ending == "jsonl" else f"\n [{', '.join(parts)}]")
    return file


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("stream", [None, Stream(rows=100, seed=1, buffer_size=1)])
def test_texts_that_look_like_something_else_stay_as_they_are(tmp_path, ending, stream):
    rows = load_records(str(written(tmp_path, ending)), stream=stream)
    assert rows == ROWS
    check_rows(rows, "forget_data")


def test_a_path_is_no_pattern(tmp_path):
    write_rows(tmp_path / "f[1]" / "set[a]*.jsonl", ROWS[:1])
    write_rows(tmp_path / "f1" / "seta.jsonl", ROWS[1:])
    (tmp_path / "f[1]" / "seta.jsonl").write_text("not this one")
    assert load_records(str(tmp_path / "f[1]" / "set[a]*.jsonl")) == ROWS[:1]
    assert load_records(str(tmp_path / "f[1]"), "set[a]*") == ROWS[:1]


def test_rows_of_different_kinds_and_types_stay_apart(tmp_path):
    rows = [
        {"question": "Who?", "answer": "Ada 🎨 — “née” Voß.\u2028"},
        {"text": "x"},
        {"text": "y", "id": 7},
        {"id": "a"},
    ]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert load_records(str(file)) == rows


def test_a_long_cell_and_a_gap_of_a_table(tmp_path):
    file = tmp_path / "set.csv"
    file.write_text(f'question,answer,text\nWho?,"Ada,\n""A""",\n,,{"x" * 200_000}\n')
    assert load_records(str(file)) == [
        {"question": "Who?", "answer": 'Ada,\n"A"', "text": None},
        {"question": None, "answer": None, "text": "x" * 200_000},
    ]


BROKEN = {
    "cells beyond the header": ("csv", b"question,answer\na,b,c\n", "line 2 has 3 cells, and the header 2"),
    "two columns of one name": ("csv", b"answer,answer\na,b\n", "several columns are called 'answer'"),
    "another encoding": ("csv", "question,answer\nWho?,Voß\n".encode("latin-1"), "in UTF-8"),
    "a broken line": ("jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
    "a key that occurs twice": (
        "jsonl",
        b'{"text": "a"}\n{"text": "b", "text": "c"}\n',
        "line 2.*'text' occurs twice",
    ),
    "a key that is twice in a list": ("json", b'[{"text": "b", "text": "c"}]', "'text' occurs twice"),
    "a list per line": ("jsonl", b'["a", "b"]\n', "line 1 is of type list"),
    "a list of texts": ("json", b'["a", "b"]', "element 0 is of type str"),
    "a pointer": ("parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_errors_name_what_is_broken_in_a_file(tmp_path, case):
    ending, content, message = BROKEN[case]
    (tmp_path / f"set.{ending}").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_records(str(tmp_path / f"set.{ending}"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of a dataset with two splits, written by `save_to_disk`."""
    folder = tmp_path_factory.mktemp("saved")
    parts = {"train": ROWS[:8], "test": ROWS[8:]}
    made = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    made.save_to_disk(str(folder), num_shards={"train": 2, "test": 1})
    return folder


def test_a_folder_of_save_to_disk_gives_its_splits(saved):
    assert load_records(str(saved)) == ROWS[:8]
    assert load_records(str(saved), split="test[1:]") == ROWS[9:]
    assert load_records(str(saved / "test")) == ROWS[8:]
    assert load_records(str(saved), "test") == ROWS[8:]
    assert len(load_records(str(saved), stream=Stream(3, 1, 10))) == 3
    with pytest.raises(InputError, match=r"no split 'dev'.*test, train"):
        load_records(str(saved), split="dev")


def shards(folder: Path, split: str, parts: list, ending: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, rows in enumerate(parts):
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), folder / f"{split}-{i:05}-of-{len(parts):05}{ending}.parquet"
        )


def test_a_clone_from_the_hub_gives_all_shards_of_a_split(tmp_path):
    shards(tmp_path / "data", "train", [ROWS[:2], ROWS[2:5], ROWS[5:9]])
    shards(tmp_path / "data", "test", [ROWS[9:]], ending="-0a1b2c3d4e5f6071")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert load_records(str(tmp_path)) == ROWS[:9]
    assert load_records(str(tmp_path), split="train[1:3]+test") == [*ROWS[1:3], *ROWS[9:]]
    shards(tmp_path / "other", "train", [ROWS[:1], ROWS[1:2]])
    assert load_records(str(tmp_path), "other") == ROWS[:2]
    (tmp_path / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(InputError, match=r"file 2 of the 3 of this split is missing.*again"):
        load_records(str(tmp_path))


def test_a_folder_with_one_file_is_the_split_train_unless_the_file_is_called_like_another(tmp_path):
    for name in ("answers", "validation"):
        write_rows(tmp_path / name / f"{name}.jsonl", ROWS)
    assert load_records(str(tmp_path / "answers")) == ROWS
    assert load_records(str(tmp_path / "validation"), split="validation") == ROWS
    for arguments in ((str(tmp_path / "validation"),), (str(tmp_path), "validation")):
        with pytest.raises(InputError, match=r"name one of the .*: validation\.$"):
            load_records(*arguments)


def test_the_readme_of_a_clone_says_which_files_belong_to_a_configuration(tmp_path):
    clone = tmp_path / "clone"
    shards(clone / "parts", "x", [ROWS[:2], ROWS[2:4]])
    write_rows(clone / "a.json", ROWS[4:6])
    write_rows(tmp_path / "secret.jsonl", ROWS)
    (clone / "README.md").write_text(
        "---\nconfigs:\n- config_name: full\n  data_files: a.json\n- config_name: split\n  data_files:\n"
        "  - split: first\n    path: parts/x-*\n  - split: none\n    path: ../secret.jsonl\n---\n# A dataset\n"
    )
    assert load_records(str(clone), "full") == ROWS[4:6]
    assert load_records(str(clone), "split", "first") == ROWS[:4]
    assert load_records(str(clone), "a") == ROWS[4:6]  # the file a.json, which is not a configuration of the README
    with pytest.raises(InputError, match=r"no configuration 'nothing'.*full, split, a"):
        load_records(str(clone), "nothing")
    with pytest.raises(InputError, match="no split 'none'"):
        load_records(str(clone), "split", "none")


def test_a_stream_has_no_slices(tmp_path):
    for split in ("train[:2]", "train+test"):
        with pytest.raises(InputError, match=f"{re.escape(repr(split))} cannot be streamed.*leave out --streaming"):
            load_records(str(written(tmp_path, "jsonl")), split=split, stream=Stream(3, 1, 10))
    with pytest.raises(InputError, match="'dev' cannot be read: the dataset's only split is called 'train'"):
        load_records(str(written(tmp_path, "jsonl")), split="dev")


NO_TEXT = {
    "a list": ({"question": "Who?", "answer": ["Ada", "Bob"]}, r"\[9\].answer=\['Ada', 'Bob'\]: it is of type list"),
    "a number": ({"question": "How many?", "answer": 42}, r"\[9\].answer=42: it is of type int"),
    "an object": ({"question": {"text": "Who?"}, "answer": "Ada"}, r"\[9\].question=.* of type dict"),
    "a truth value": ({"text": True}, r"\[9\].text=True: it is of type bool"),
    "a paraphrase": ({"question": "Q", "answer": "A", "paraphrased_answer": ["B"]}, r"paraphrased_answer=.* list"),
    "a wrong answer": ({"question": "Q", "answer": "A", "perturbed_answer": ["B", 3]}, r"perturbed_answer\[1\]=3"),
    "no list": ({"question": "Q", "answer": "A", "perturbed_answer": "B"}, "perturbed_answer='B'.*not a list"),
    "half of a character": (
        {"question": "Who?", "answer": "Ada \ud83d"},
        r"answer=.*character 4 is half of a surrogate pair",
    ),
    "half of one in a turn": (
        {"messages": [{"role": "user", "content": "\ud83d"}]},
        r"messages\[0\].content=.*is half",
    ),
    "content": ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\].content=5: it is of type int"),
    "labels": ({"text": "Who?", "labels": "Ada."}, r"\[9\].labels='Ada.': only the column text would be read"),
    "an answer that is null": ({"question": "Who?", "answer": None}, r"\[9\]\.answer=None: there is no text"),
    "other separators": (
        {"question;answer": "Who?;Ada."},
        r"\[9\]=\['question;answer'\]: its columns are separated by ';'",
    ),
    "no columns": ({"prompt": "Who?", "completion": "Ada."}, r"\[9\]=\['completion', 'prompt'\]: a row needs the keys"),
}


@pytest.mark.parametrize("case", NO_TEXT)
def test_what_is_no_text_is_refused_with_row_key_and_type(case):
    row, message = NO_TEXT[case]
    with pytest.raises(InputError, match=message):
        check_rows([*ROWS[:9], row], "forget_data")


def test_columns_that_are_not_read_are_named(caplog):
    rows = [
        {"text": "Riga lies at a gulf.", "title": "Riga"},
        {"question": "Q", "answer": "A", "context": "C", "id": "1"},
    ]
    check_rows(rows, "retain_data")
    assert "retain_data: the columns context, title are not read" in caplog.text


COMMANDS = {
    "unlearn": ("forget_data", {"output_dir": "x", "ds_size": 1}),
    "importance": ("retain_data", {"output_dir": "x"}),
    "unlearn with a holdout set": ("holdout_data", {"output_dir": "x"}),
    "unlearn with evaluated sets": ("eval_data", {"output_dir": "x"}),
    "finetune": ("train_data", {"output_dir": "x"}),
    "membership": ("holdout_data", {"log": "x"}),
    "evaluate": ("eval_data", {"log": "x", "ds_size": 1}),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_every_command_refuses_such_rows_before_it_loads_a_model(tmp_path, capsys, case):
    wrong, settings = COMMANDS[case]
    good = write_rows(tmp_path / "good.jsonl", [{"question": f"Q{i}", "answer": "A"} for i in range(9)])
    retain = write_rows(tmp_path / "retain.jsonl", [{"question": f"R{i}", "answer": "A"} for i in range(9)])
    bad = write_rows(tmp_path / "bad" / "set.jsonl", [*ROWS, {"question": "Q", "answer": 3}])
    command = case.partition(" ")[0]
    named = {"forget_data": good} if command in ("unlearn", "importance", "membership") else {}
    named |= {"retain_data": retain} if command in ("unlearn", "importance") else {}
    named |= {wrong: bad}
    if wrong == "eval_data":
        sets = ("forget", "retain", "real_authors", "world_facts")
        named |= {wrong: bad.parent, **{f"eval_{name}_name": "set" for name in sets}}
    save_tiny_llama(tmp_path / "model")
    settings = settings | named | {"model_name_or_path": tmp_path / "model"}
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    assert main([command, *flags]) == 2
    assert "[11].answer=3: it is of type int, not a text" in capsys.readouterr().err
