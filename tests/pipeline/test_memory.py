"""A real run whose batches do not fit the memory: what they make is the same, and a line says what happened."""

from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from helpers.runs import flags
from unlora.cli import main
from unlora.evals import read_log
from unlora.runs.folder import EVALUATIONS

TOKENS = 60


@contextmanager
def memory_for(tokens):
    """Let linear layers that see more tokens at once run out of memory, in the backward pass if there is one."""

    def fail(gradient=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    def check(module, args, output):
        if isinstance(module, nn.Linear) and args[0].shape[:-1].numel() > tokens:
            output.register_hook(fail) if output.requires_grad else fail()

    hook = register_module_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


def test_a_run_that_is_short_of_memory_ends_with_the_same_adapter_and_evaluation(
    plain_run, model_folder, tmp_path, caplog
):
    whole, _, _ = plain_run
    with memory_for(TOKENS):
        assert main(["unlearn", *flags(model_folder, whole.parent / "data", tmp_path / "run")]) == 0
    told = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    # A few for each of scoring, generation, importance and training, and not one for each batch.
    assert 4 <= len(told) <= 12
    found, expected = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path / "run", whole)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    logs = [read_log(folder / EVALUATIONS["unlearned"]) for folder in (tmp_path / "run", whole)]
    for task, columns in logs[1].items():
        assert logs[0][task]["generated_text"] == columns["generated_text"]
        for row, loss in columns["avg_gt_loss"].items():
            assert logs[0][task]["avg_gt_loss"][row] == pytest.approx(loss, rel=1e-3)
