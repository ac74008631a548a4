"""The importance of weights for the forget set: gradient moments, importance scores and adapter initialisers."""

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
