"""Teachers: predictions of a model that does not know the fact, made by the original model itself."""

from unlora.teachers.interface import Taught, Teacher, Teaching
from unlora.teachers.table import TEACHERS, register_teacher

__all__ = ["TEACHERS", "Taught", "Teacher", "Teaching", "register_teacher"]
