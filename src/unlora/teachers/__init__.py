"""Teachers: make the original model predict each forget answer as a model would that does not know the fact."""

from unlora.teachers.interface import Taught, Teacher, Teaching, lesson
from unlora.teachers.reading import predictions
from unlora.teachers.table import TEACHERS, register_teacher

__all__ = ["TEACHERS", "Taught", "Teacher", "Teaching", "lesson", "predictions", "register_teacher"]
