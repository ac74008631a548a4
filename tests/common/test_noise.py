"""Other libraries' messages about a machine without a GPU are dropped. All their other messages are kept."""

from __future__ import annotations

import logging

import pytest

import unlora  # noqa: F401 - importing it installs the filters


@pytest.mark.parametrize(
    ("logger", "noise"),
    [
        ("DeepSpeed", "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."),
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community: %s."),
    ],
)
def test_only_these_messages_are_dropped(logger, noise, caplog, monkeypatch):
    log = logging.getLogger(logger)
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "disabled", False)
    log.warning(noise, *["no kernels"] * noise.count("%s"))
    log.warning("something is wrong")
    assert set(caplog.messages) == {"something is wrong"}
