import copy

import pytest
import torch

from unlora.common.errors import InputError
from unlora.data import IGNORE_INDEX, TextFormat, UnlearnCollator, encode_turns, iter_batches, pad_batch, padding_id

SHORT = {"input_ids": [5, 6], "labels": [-100, 6]}
LONG = {"input_ids": [7, 8, 9, 1], "labels": [-100, -100, 9, 1]}


@pytest.fixture
def own(tokenizer):
    return copy.deepcopy(tokenizer)


@pytest.mark.parametrize(
    ("side", "ids", "mask", "labels"),
    [
        ("right", [5, 6, 0, 0], [1, 1, 0, 0], [-100, 6, -100, -100]),
        ("left", [0, 0, 5, 6], [0, 0, 1, 1], [-100, -100, -100, 6]),
    ],
)
def test_short_rows_are_filled_to_the_longest_of_their_batch(side, ids, mask, labels):
    batch = pad_batch([SHORT, LONG], pad_id=0, side=side)
    assert batch["input_ids"].tolist() == [ids, LONG["input_ids"]]
    assert batch["attention_mask"].tolist() == [mask, [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [labels, LONG["labels"]]
    assert pad_batch([SHORT], pad_id=0, side=side)["input_ids"].shape == (1, 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_real_end_tokens_stay_visible_where_pad_is_eos(own, side):
    own.pad_token = own.eos_token
    text_format = TextFormat(own)
    examples = [encode_turns("Who?", answer, text_format) for answer in ("Nobody", "Nobody at all, quietly")]
    batch = pad_batch(examples, padding_id(own), side)
    for row, example in enumerate(examples):
        seen = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][seen].tolist() == example["input_ids"]
        assert batch["labels"][row][seen].tolist() == example["labels"]
        assert batch["labels"][row][seen][-1] == own.eos_token_id
        assert (batch["input_ids"][row][~seen] == own.eos_token_id).all()
        assert (batch["labels"][row][~seen] == IGNORE_INDEX).all()


def test_the_padding_id_is_the_pad_token_or_else_the_end_token(own):
    assert padding_id(own) == own.pad_token_id
    own.pad_token = None
    assert padding_id(own) == own.eos_token_id


def test_a_tokenizer_with_neither_pad_nor_end_token_is_refused(own):
    own.pad_token = own.eos_token = None
    with pytest.raises(InputError, match=r"tokenizer=.*neither a pad nor an eos token"):
        padding_id(own)


def test_batches_hold_every_example_once_and_the_longest_come_first():
    examples = [{"input_ids": [i] * n, "labels": [i] * n} for i, n in enumerate((2, 7, 3, 5, 4))]
    batches = list(iter_batches(examples, batch_size=2, pad_id=99))
    assert [batch["input_ids"].shape for batch in batches] == [(2, 7), (2, 4), (1, 2)]
    rows = [row[mask.bool()].tolist() for batch in batches for row, mask in zip(*list(batch.values())[:2], strict=True)]
    assert sorted(rows) == sorted(example["input_ids"] for example in examples)


OTHER = {"input_ids": [3, 4, 1], "labels": [-100, 4, 1]}


def pair(forget, retain, **rest):
    return {"forget": forget, "retain": retain, "alternate": None, "ref_logp": {}, **rest}


def test_the_collator_puts_forget_rows_first_and_passes_the_reference_on():
    pairs = [pair(SHORT, LONG, ref_logp={"forget": -1.5}), pair(LONG, SHORT, ref_logp={"forget": -2.5})]
    batch = UnlearnCollator(pad_id=0)(pairs)
    expected = pad_batch([SHORT, LONG, LONG, SHORT], pad_id=0)
    assert batch["forget_examples"] == 2
    assert all(torch.equal(batch[key], value) for key, value in expected.items())
    assert batch["ref_logp"].tolist() == [-1.5, -2.5]


def test_the_collator_needs_neither_retain_rows_nor_a_reference():
    batch = UnlearnCollator(pad_id=0)([pair(SHORT, None)])
    assert batch["input_ids"].tolist() == [SHORT["input_ids"]]
    assert batch["forget_examples"] == 1
    assert "ref_logp" not in batch


def test_the_collator_takes_only_the_columns_that_are_read_one_after_the_other():
    values = [{"forget": -1.5, "alternate": -3.5}, {"forget": -2.5, "alternate": -4.5}]
    pairs = [
        pair(SHORT, LONG, alternate=OTHER, ref_logp=values[0]),
        pair(LONG, SHORT, alternate=SHORT, ref_logp=values[1]),
    ]
    both = UnlearnCollator(0, ("forget", "alternate"))(pairs)
    assert torch.equal(both["input_ids"], pad_batch([SHORT, LONG, OTHER, SHORT, LONG, SHORT], 0)["input_ids"])
    assert both["ref_logp"].tolist() == [-1.5, -2.5, -3.5, -4.5]
    assert both["forget_examples"] == 4
    alone = UnlearnCollator(0, ("alternate",))(pairs)
    assert torch.equal(alone["input_ids"], pad_batch([OTHER, SHORT, LONG, SHORT], 0)["input_ids"])
    assert alone["forget_examples"] == 2
