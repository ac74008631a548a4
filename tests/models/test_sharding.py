"""The settings for DeepSpeed. The results of sharding are tested in tests/pipeline/test_distributed.py."""

import json

from unlora.models.sharding import zero3_settings


def test_auto_values_are_left_to_deepspeed(tmp_path):
    settings = {"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": "auto"}}
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    told = zero3_settings(str(tmp_path / "zero3.json"), "bfloat16")
    assert told["zero_optimization"] == {"stage": 3}
    assert (told["bf16"]["enabled"], told["fp16"]["enabled"]) == (True, False)
