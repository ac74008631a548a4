"""Draw the retain examples that the importance is estimated from."""

from __future__ import annotations

import random
from collections.abc import Sequence

from unlora.data import Example


def retain_sample(retain: Sequence[Example], size: int, seed: int) -> list[Example]:
    """Return `size` random examples, or all of them in random order if there are fewer."""
    return random.Random(seed).sample(list(retain), min(size, len(retain)))
