"""Untrusted JSON and YAML is read strictly. Anything but plain values is refused quickly, with a reason."""

from __future__ import annotations

import os

import pytest

from unlora.common.reading import parse_json, read_json, read_yaml

DEEP = 100_000
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a: \xff", "utf-8"),
        (b"[" * DEEP, "nested too deeply"),
        (b"a: " + b"[" * 30 + b"]" * 30, "nested too deeply"),
        (BOMB.encode(), "aliases are not supported in line 1|aliases are not supported in line 2"),
        (b"a: 1\na: 2", "the key 'a' occurs twice in line 1"),
        (b"x: {a: 1, a: 2}", "the key 'a' occurs twice"),
        (b"1: 2", "the key 1 is not text"),
        (b"0: 2", "the key 0 is not text"),
        (b"null: 2", "the key None is not text"),
        (b"'': 1\n'': 2", "the key '' occurs twice"),
        (b"[1, 2]: 3", "not text"),
        (b"a: 2024-01-01", "date values are not supported: put text in quotes"),
        (b"a: !!python/object:os.system x", "could not determine a constructor"),
        (b"a: !!binary aGk=", "bytes values"),
        (b"a: " + b"9" * 5000, "integer string conversion"),
        (b"a: 1\n---\na: 2", "another document"),
        (b"a: \x00", "special characters"),
        (b"#" * 1_000_001, "at most 1000000 are allowed"),
    ],
)
def test_yaml_with_anything_but_plain_settings_is_refused(tmp_path, text, reason):
    (tmp_path / "a.yaml").write_bytes(text)
    with pytest.raises(ValueError, match=reason):
        read_yaml(tmp_path / "a.yaml")


def test_settings_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\nb: [x, 2.5, true, null]\nc: {beta: 0.1}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1, "b": ["x", 2.5, True, None], "c": {"beta": 0.1}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * DEEP, "nested too deeply"),
        ("[" * 30 + "]" * 30, "nested too deeply"),
        ('{"a": 1, "b": 1, "b": 2}', "the key 'b' occurs twice"),
        ("[NaN]", "NaN is not a finite number"),
        ("[-Infinity]", "not a finite number"),
        ("1e999", "1e999 is not a finite number"),
        ("9" * 100, "too large a number"),
        ("", "Expecting value"),
    ],
)
def test_text_that_is_not_strict_json_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading from it would block forever
    for path, reason in ((tmp_path / "pipe", "not a file"), (tmp_path, "it is a folder")):
        with pytest.raises(ValueError, match=reason):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none")
