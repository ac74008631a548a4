"""Plain LoRA, the baseline of all initialisers (Hu et al., ICLR 2022, arXiv 2106.09685)."""

from __future__ import annotations

from unlora.importance.initialiser import Initialiser

LORA = Initialiser(
    lambda measurement: None, "none: A is Kaiming-uniform and B = 0", "Hu et al., ICLR 2022 (arXiv 2106.09685)"
)
