"""Which parameters hold the forget set: gradient moments, and the importance that follows from them."""

from unlora.importance.convergence import moments_until_stable
from unlora.importance.moments import Moments, gradient_moments
from unlora.importance.ratio import IMPORTANCE_METHODS, normalised_rows, relative_importance
from unlora.importance.storage import load_importance, save_importance

__all__ = [
    "IMPORTANCE_METHODS",
    "Moments",
    "gradient_moments",
    "load_importance",
    "moments_until_stable",
    "normalised_rows",
    "relative_importance",
    "save_importance",
]
