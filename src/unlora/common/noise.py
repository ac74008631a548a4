"""Hide messages that other libraries log at import and that are of no use to the user."""

from __future__ import annotations

import logging

# Logger -> beginning of a message that only states what is normal on a machine without a GPU.
_NOISE = {
    "DeepSpeed": "Setting accelerator to CPU.",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE[record.name])


def leave_out_noise() -> None:
    """Drop these messages and no others. The libraries are not imported."""
    for name in _NOISE:
        logger = logging.getLogger(name)
        if _is_wanted not in logger.filters:
            logger.addFilter(_is_wanted)
