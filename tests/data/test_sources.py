import csv
import json

import datasets
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest

from unlora.common.errors import InputError
from unlora.data import Stream, check_overlap, load_records, without_short_texts
from unlora.data.sources import row_text

ROWS = [{"question": f"Who is number {i}?", "answer": f"Nobody, {i}"} for i in range(5)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def offline(monkeypatch):
    """Set what HF_HUB_OFFLINE=1 sets: no request is sent to the Hub, as if there were no network."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def write(file, rows=ROWS):
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return str(file)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_single_file_of_each_kind_gives_its_rows_in_order(tmp_path, ending):
    assert load_records(write(tmp_path / f"set.{ending}")) == ROWS


def test_a_folder_gives_the_named_configuration(tmp_path):
    write(tmp_path / "forget10.jsonl", ROWS[:2])
    write(tmp_path / "retain90.csv", ROWS[2:])
    assert load_records(str(tmp_path), "forget10") == ROWS[:2]
    assert load_records(str(tmp_path), "retain90") == ROWS[2:]


@pytest.mark.parametrize(
    ("split", "rows"), [("train", ROWS), ("train[:2]", ROWS[:2]), ("train[3:]", ROWS[3:]), ("train[-20%:]", ROWS[4:])]
)
def test_a_split_may_be_a_slice(tmp_path, split, rows):
    assert load_records(write(tmp_path / "set.jsonl"), split=split) == rows


def test_a_changed_file_is_read_anew(tmp_path):
    load_records(write(tmp_path / "set.jsonl", ROWS[:3]))
    assert load_records(write(tmp_path / "set.jsonl", ROWS[:1])) == ROWS[:1]


@pytest.mark.parametrize("name", ["forget11", None])
def test_a_configuration_that_a_folder_lacks_is_answered_with_those_it_has(tmp_path, name):
    write(tmp_path / "forget10.jsonl")
    write(tmp_path / "retain90.jsonl")
    with pytest.raises(InputError, match=r"forget_data=.*configuration.*forget10, retain90"):
        load_records(str(tmp_path), name, argument="forget_data")


@pytest.mark.parametrize("path", ["/no/such/folder", "missing.jsonl", "./missing", "folder/missing.csv"])
def test_a_missing_path_names_the_argument_and_the_path(path):
    with pytest.raises(InputError, match=f"retain_data='{path}': no such file or folder"):
        load_records(path, argument="retain_data")


def test_a_file_of_unknown_kind_is_refused_with_the_kinds_that_are_read(tmp_path):
    (tmp_path / "set.txt").write_text("hello")
    with pytest.raises(InputError, match=r"forget_data=.*'\.txt' are not read.*\.jsonl.*\.parquet"):
        load_records(str(tmp_path / "set.txt"), argument="forget_data")


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_a_set_without_rows_is_refused(tmp_path, content):
    file = tmp_path / "set.json"
    file.write_text(content)
    with pytest.raises(InputError, match="forget_data="):
        load_records(str(file), argument="forget_data")


def test_an_empty_slice_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"train\[5:\]"):
        load_records(write(tmp_path / "set.jsonl"), split="train[5:]")


@pytest.mark.parametrize("split", ["test", "train[:x]"])
def test_a_split_that_does_not_exist_is_named_with_the_argument(tmp_path, split):
    with pytest.raises(InputError) as caught:
        load_records(write(tmp_path / "set.jsonl"), split=split, argument="forget_data")
    assert "forget_data=" in str(caught.value)
    assert repr(split) in str(caught.value)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_a_broken_file_is_an_input_error_that_names_it(tmp_path, ending):
    file = tmp_path / f"set.{ending}"
    file.write_text('{"question": "never clo')
    with pytest.raises(InputError, match=f"forget_data='{file}'.*cannot be read"):
        load_records(str(file), argument="forget_data")


@pytest.mark.parametrize("name", ["no_such/dataset", "nosuchdataset"])
def test_a_hub_name_without_a_hub_names_the_argument_and_the_way_out(offline, name):
    with pytest.raises(InputError, match=f"forget_data='{name}'.*check the path, the hub name, or the network"):
        load_records(name, argument="forget_data")


def test_overlap_counts_forget_rows_that_stand_in_the_retain_set():
    # Rows 1 and 2 are in both sets. Spaces around a text and additional columns do not make a row different.
    retain = [ROWS[4], {**ROWS[1], "author": "x"}, {"question": f" {ROWS[2]['question']}", "answer": ROWS[2]["answer"]}]
    with pytest.raises(InputError, match=r"retain_data=.*2 of the 3 forget rows"):
        check_overlap(ROWS[:3], retain)


def test_sets_that_share_only_questions_do_not_overlap():
    check_overlap(ROWS, [{"question": row["question"], "answer": "other"} for row in ROWS])


@pytest.mark.parametrize("row", [{"text": "One text."}, {"messages": [{"role": "user", "content": "Hi"}]}])
def test_overlap_is_found_in_texts_and_conversations(row):
    with pytest.raises(InputError, match="1 of the 1 forget rows"):
        check_overlap([row], [row])
    check_overlap([row], [{"text": "Another."}])


def test_overlap_of_texts_is_found_where_a_table_has_empty_question_columns():
    """A file of mixed rows becomes a table, in which columns that a row lacks are None. They do not make rows equal."""
    empty = {"question": None, "answer": None}
    check_overlap([{"text": "One.", **empty}], [{"text": "Two.", **empty}])
    with pytest.raises(InputError, match="1 of the 1"):
        check_overlap([{"text": "One.", **empty}], [{"text": "One."}])


def test_a_stream_gives_the_requested_number_of_rows_shuffled_within_its_buffer(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(1000)))
    streams = [Stream(rows=20, seed=seed, buffer_size=50) for seed in (1, 1, 2)]
    first, same, other = ([int(row["text"]) for row in load_records(str(file), stream=stream)] for stream in streams)
    assert len(set(first)) == 20
    assert first == same != other
    assert first != sorted(first)
    assert all(number < 50 + place for place, number in enumerate(first))  # only rows read by then can be drawn
    assert len(load_records(str(file), stream=Stream(5000, 1, 50))) == 1000


def test_only_plain_texts_can_be_too_short():
    question = {"question": "Who?", "answer": "Ada.", "text": None}
    both = {"question": "Who?", "answer": "Ada.", "text": "x"}
    chat = {"messages": [{"role": "user", "content": "x"}], "text": "x"}
    rows = [{"text": "= Riga ="}, {"text": "Riga lies at a gulf."}, question, both, chat]
    assert without_short_texts(rows, 0) == rows
    assert without_short_texts(rows, 8) == rows
    assert without_short_texts(rows, 9) == rows[1:]
    assert without_short_texts(rows, 100) == rows[2:]


def test_texts_that_are_all_too_short_are_refused():
    with pytest.raises(InputError, match="min_characters=9: none of the 2 texts in retain_data is that long"):
        without_short_texts([{"text": "One."}, {"text": "= Two ="}], 9, "retain_data")


def test_the_text_of_a_row_is_what_a_model_reads_of_it():
    call = {"function": {"name": "find", "arguments": {"who": "Ada"}}}
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert row_text({"question": "Who?", "answer": "Ada", "text": "unread"}) == "Who?\nAda"
    assert row_text({"messages": turns, "text": "unread", "answer": None}) == f"Who?\n{json.dumps(call['function'])}"
    assert row_text({"text": "read", "question": None}) == "read"
