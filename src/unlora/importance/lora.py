"""Plain LoRA: the start that everything else is compared with."""

from __future__ import annotations

from unlora.importance.interface import Initialiser, Measurement


def rows(measurement: Measurement) -> None:
    """No importance: A is random and B is zero."""


LORA = Initialiser(rows, "none: A Kaiming-uniform, B = 0", "Hu et al., ICLR 2022 (arXiv 2106.09685)")
