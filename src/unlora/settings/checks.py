"""Checks that several groups of settings share. Each returns the problems it finds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any

from unlora.common.errors import Problem, unknown_name


def not_finite(settings: Any) -> list[Problem]:
    """Settings that are NaN or infinite. No comparison catches NaN, and both would spoil every result."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return [
        Problem(name, value, "it is not a finite number", "use one")
        for name, value in values.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]


def below(settings: Any, least: Mapping[str, float], reason: str) -> list[Problem]:
    """Settings that are smaller than their least value; None means "not given" and passes."""
    values = {name: getattr(settings, name) for name in least}
    return [
        Problem(name, value, reason, f"use at least {least[name]}")
        for name, value in values.items()
        if value is not None and value < least[name]
    ]


def not_positive(settings: Any, names: Iterable[str]) -> list[Problem]:
    """Settings that are zero or negative; None means "not given" and passes."""
    values = {name: getattr(settings, name) for name in names}
    return [
        Problem(name, value, "it must be positive", "use a positive value")
        for name, value in values.items()
        if value is not None and value <= 0
    ]


def not_among(settings: Any, choices: Mapping[str, Collection[str]]) -> list[Problem]:
    """Settings whose value is not one of their choices."""
    values = {name: getattr(settings, name) for name in choices}
    return [unknown_name(name, value, choices[name]) for name, value in values.items() if value not in choices[name]]


def missing(settings: Any, names: Iterable[str], reason: str = "it is required", fix: str = "name it") -> list[Problem]:
    """Required settings that are empty."""
    values = {name: getattr(settings, name) for name in names}
    return [Problem(name, value, reason, fix) for name, value in values.items() if not value]


def changed(settings: Any) -> dict[str, Any]:
    """The settings that differ from their defaults."""
    defaults = type(settings)
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}
