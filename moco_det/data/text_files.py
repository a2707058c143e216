"""Reading the text files of a data set: UTF-8 or, where it is marked as such, UTF-16."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

from moco_det.foundation.errors import InputError


def absolute(path: str | Path) -> Path:
    """The path with ~ replaced, made absolute; links stay."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def read_text(path: Path, what: str) -> str:
    """The text of a file, which errors call `what`."""
    if not path.is_file():
        raise InputError(f"{what} {path} does not exist: check the path")
    try:
        with path.open("rb") as file:  # PowerShell's ">" writes UTF-16 with its mark
            marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return path.read_text(encoding="utf-16" if marked else "utf-8-sig")
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} is not UTF-8 text ({error}): is it whole?") from error


def read_json(path: Path, what: str) -> Any:
    """The content of a json file, which errors call `what`."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} {path} is not json ({error}): is it whole?") from error
