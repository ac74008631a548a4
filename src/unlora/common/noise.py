"""Messages that other libraries log when they are imported and that help nobody, which are kept out of all output."""

from __future__ import annotations

import logging

# Logger -> how a message begins that says only what is normal on a machine without a GPU.
_NOISE = {
    "DeepSpeed": "Setting accelerator to CPU.",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


def _wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE[record.name])


def leave_out_noise() -> None:
    """Drop these messages. Everything else that the libraries log is still shown, and nothing is imported."""
    for name in _NOISE:
        logger = logging.getLogger(name)
        if _wanted not in logger.filters:
            logger.addFilter(_wanted)
