"""A later request recognises the rows that earlier ones had to forget, from their hashes alone."""

import json

import pytest

from unlora.common.errors import InputError
from unlora.runs.forgotten import FORGOTTEN, check_not_taught_again, forgotten, write_forgotten

ADA = [{"question": f"Where is Ada's cat {i}?", "answer": f"On roof {i}."} for i in range(3)]
BOB = [{"text": f"Bob has {i} boats."} for i in range(2)]
OTHERS = [{"question": "Who is Cid?", "answer": "A clerk."}, {"text": "Cid has no boat."}]


@pytest.fixture
def chain(tmp_path):
    """Return a folder with two runs, of which the second continues the first."""
    write_forgotten(tmp_path / "run1", ADA, None)
    write_forgotten(tmp_path / "run2", BOB, str(tmp_path / "run1"))
    return tmp_path


def test_rows_of_every_earlier_request_are_refused_with_its_name(chain):
    with pytest.raises(InputError) as error:
        check_not_taught_again([*OTHERS, *ADA[:2], BOB[0]], str(chain / "run2"))
    of_ada, of_bob = map(str, error.value.problems)
    assert of_ada.startswith("retain_data='5 distinct rows': 2 of them are rows that run1 had to forget")
    assert of_bob.startswith("retain_data='5 distinct rows': 1 of them are rows that run2 had to forget")


def test_a_row_is_known_by_its_text_alone(chain):
    again = {"answer": " On roof 1. ", "question": "Where is Ada's cat 1?", "perturbed_answer": ["No."], "text": None}
    with pytest.raises(InputError, match="1 of them are rows that run1"):
        check_not_taught_again([again], str(chain / "run1"))


def test_rows_that_no_request_had_to_forget_are_accepted(chain, caplog):
    check_not_taught_again(OTHERS, str(chain / "run2"))
    check_not_taught_again([*OTHERS, BOB[0]], str(chain / "run1"))  # run1 came before Bob's request
    check_not_taught_again(ADA, None)
    assert not caplog.records


def test_the_first_run_is_not_needed_again_and_no_text_is_kept(chain):
    (chain / "run1" / FORGOTTEN).unlink()
    (chain / "run1").rmdir()
    assert [part["run"] for part in forgotten(str(chain / "run2"))] == ["run1", "run2"]
    text = (chain / "run2" / FORGOTTEN).read_text()
    assert not [word for word in ("Ada", "roof", "Bob", "boats") if word in text]
    assert [len(part["rows"]) for part in json.loads(text)] == [3, 2]


def test_a_run_without_hashes_causes_a_warning_whenever_a_later_request_builds_on_it(tmp_path, caplog):
    (tmp_path / "old").mkdir()
    write_forgotten(tmp_path / "new", BOB, str(tmp_path / "old"))
    with pytest.raises(InputError, match="1 of them are rows that new had to forget"):
        check_not_taught_again(BOB[:1], str(tmp_path / "new"))
    assert "old was made by a version that did not write forgotten.json" in caplog.text


@pytest.mark.parametrize("content", ["{", "[1]", '[{"run": "run1"}]'])
def test_an_invalid_file_of_hashes_is_refused(chain, content):
    (chain / "run2" / FORGOTTEN).write_text(content)
    with pytest.raises(InputError, match=r"on='.*run2': its forgotten.json cannot be read"):
        check_not_taught_again(OTHERS, str(chain / "run2"))
