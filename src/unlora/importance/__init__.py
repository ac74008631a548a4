"""Which rows of which weights matter for the forget set: gradient moments, the importance from them, initialisers."""

from unlora.importance.initialiser import Initialiser, Measurement
from unlora.importance.moments import Moments, gradient_moments
from unlora.importance.table import INITIALISERS, register_initialiser, relative_importance
from unlora.importance.vila import attach_probe

__all__ = [
    "INITIALISERS",
    "Initialiser",
    "Measurement",
    "Moments",
    "attach_probe",
    "gradient_moments",
    "register_initialiser",
    "relative_importance",
]
