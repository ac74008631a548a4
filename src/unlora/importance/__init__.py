"""Which rows of which weights matter for the forget set: gradient moments, the importance from them, initialisers."""

from unlora.importance.initialiser import Initialiser, Measurement
from unlora.importance.moments import Moments, gradient_moments
from unlora.importance.ratio import normalised_rows
from unlora.importance.storage import importance_key, load_importance, save_importance
from unlora.importance.table import (
    INITIALISERS,
    estimate_settings,
    initialiser_problems,
    register_initialiser,
    relative_importance,
    unread_settings,
)
from unlora.importance.vila import attach_probe

__all__ = [
    "INITIALISERS",
    "Initialiser",
    "Measurement",
    "Moments",
    "attach_probe",
    "estimate_settings",
    "gradient_moments",
    "importance_key",
    "initialiser_problems",
    "load_importance",
    "normalised_rows",
    "register_initialiser",
    "relative_importance",
    "save_importance",
    "unread_settings",
]
