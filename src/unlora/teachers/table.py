"""The teachers by name. To add one to the package, write its module and list its name in `unlora.settings.names`."""

from __future__ import annotations

from unlora.common.plugins import register
from unlora.settings import names
from unlora.settings.names import Table
from unlora.teachers.interface import Teacher

TEACHERS: Table[Teacher] = names.TEACHERS


def register_teacher(name: str, teacher: Teacher) -> None:
    """Make a teacher known by a name in this process.

    Raises:
        InputError: the name is taken.
    """
    register("teacher", TEACHERS, name, teacher)
