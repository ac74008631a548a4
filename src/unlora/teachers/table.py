"""The teachers by name. To add one to the package, write its file and add its entry here."""

from __future__ import annotations

from unlora.common.plugins import register
from unlora.teachers.changed_names import CHANGED_NAMES
from unlora.teachers.interface import Teacher

TEACHERS: dict[str, Teacher] = {"changed_names": CHANGED_NAMES}


def register_teacher(name: str, teacher: Teacher) -> None:
    """Make a teacher known by a name in this process.

    Raises:
        InputError: the name is taken.
    """
    register("teacher", TEACHERS, name, teacher)
