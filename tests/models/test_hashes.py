"""Hashes of rows and weights, which depend on the content and not on how it is stored."""

from __future__ import annotations

import hashlib
import json

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from unlora.data import load_records
from unlora.models.hashes import adapter_sha256, base_sha256, rows_sha256, weights_digest

ROWS = [{"question": "Who?", "answer": "Ada Lövelace", "wrong": ["Bob", "Eve"]}, {"question": "Where?", "answer": "x"}]


def test_the_hash_of_rows_is_that_of_their_sorted_json_lines():
    text = '{"answer": "é", "n": 1}\n{"answer": "b"}\n'
    assert rows_sha256([{"n": 1, "answer": "é"}, {"answer": "b"}]) == hashlib.sha256(text.encode()).hexdigest()


def test_a_jsonl_file_and_a_table_of_the_same_rows_hash_alike(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    read = [load_records(str(tmp_path / f"rows.{kind}")) for kind in ("jsonl", "parquet")]
    assert read[1][1]["wrong"] is None  # a table fills missing values with None
    assert {rows_sha256(rows) for rows in read} == {rows_sha256(ROWS)}


@pytest.mark.parametrize(
    "other",
    [ROWS[::-1], ROWS[:1], [*ROWS, ROWS[0]], [{**ROWS[0], "answer": "Ada"}, ROWS[1]], [{**ROWS[0], "n": 0}, ROWS[1]]],
    ids=["order", "fewer", "more", "text", "column"],
)
def test_any_other_rows_have_another_hash(other):
    assert rows_sha256(other) != rows_sha256(ROWS)


def test_the_hash_of_weights_is_over_name_type_shape_and_bytes():
    weight = torch.tensor([[1.0, 2.0]])
    by_hand = hashlib.sha256(b"w torch.float32 (1, 2)" + weight.numpy().tobytes()).hexdigest()
    assert weights_digest([("w", weight)]).hexdigest() == by_hand
    others = [("v", weight), ("w", weight.T), ("w", weight.view(torch.int32)), ("w", weight + 1)]
    assert by_hand not in {weights_digest([other]).hexdigest() for other in others}


def test_a_base_hashes_alike_in_one_file_in_shards_and_in_memory(tiny_model, tmp_path):
    model = tiny_model("qwen")
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    found = {base_sha256(str(tmp_path / name)) for name in ("whole", "shards")}
    assert found == {weights_digest(sorted(model.state_dict().items())).hexdigest()}


def test_one_changed_number_changes_the_hash_of_a_base(tiny_model, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    before = base_sha256(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert base_sha256(str(tmp_path)) != before


def test_a_folder_without_whole_weights_has_no_hash(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert base_sha256(str(tmp_path)) is None


def test_the_hash_of_an_adapter_is_of_weights_and_settings_but_not_of_the_base_s_name(tmp_path):
    def write(alpha=16, base="a/b", weight=1.0, modules=("k", "q")):
        save_file({"w": torch.tensor([weight])}, tmp_path / "adapter_model.safetensors")
        settings = {"lora_alpha": alpha, "base_model_name_or_path": base, "target_modules": modules}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        return adapter_sha256(tmp_path)

    assert write() == write(base="elsewhere") == write(modules=["q", "k"])
    assert len({write(), write(alpha=32), write(weight=2.0), write(modules=["k"])}) == 4
