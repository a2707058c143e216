"""docs/weights.md says of every format what the rows do, and names configs that are there."""

from __future__ import annotations

import re
from pathlib import Path

from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.formats import ENCODERS, FORMATS
from moco_det.weights.inspection import OF_A_FORMAT
from moco_det_tools.convert_weights import parser

REPO = Path(__file__).resolve().parents[2]
USUAL = {"-h", "--help", "-V", "--version"}  # of every tool
TEXT = (REPO / "docs" / "weights.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its two head lines."""
    below = TEXT.partition(f"\n## {heading}\n")[2]
    lines = below[below.index("|") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_table_of_formats_has_every_row_with_its_encoders_default_first() -> None:
    stated = {
        name: tuple(cells[2].split(", "))
        for cells in rows_of("Formats")
        for name in re.findall(r"`([^`]+)`", cells[0])
    }
    assert stated == {row.name: tuple(row.encoders) for row in FORMATS}


def test_formats_that_are_only_taken_by_name_say_so() -> None:
    by_name = {
        name
        for cells in rows_of("Formats")
        for name in re.findall(r"`([^`]+)`", cells[0])
        if cells[1].startswith("only by `--from")
    }
    assert by_name == {row.name for row in FORMATS if row.by_name_only}


def test_every_config_that_a_published_checkpoint_belongs_to_is_there_and_names_the_file() -> None:
    pairs = [
        pair
        for cells in rows_of("Published checkpoints")
        for pair in re.findall(r"`(weights/[\w.]+)`, `(\*_[\w*]+\.yaml)`", cells[4])
    ]
    assert len(pairs) >= 7
    for weights, pattern in pairs:
        configs = list((REPO / "configs").glob(pattern))
        assert configs, pattern
        for config in configs:
            assert f"WEIGHTS: {weights}" in config.read_text(encoding="utf-8"), config.name


def test_every_option_and_key_is_explained() -> None:
    options = {word for action in parser()._actions for word in action.option_strings}
    assert [o for o in options - USUAL if f"`{o}" not in TEXT] == []
    assert [key for key in OF_A_FORMAT if f"`{key}`" not in TEXT] == []
    assert [word for word in ENCODERS if f"`{word}`" not in TEXT] == []
    assert len(ARCHITECTURES) == 20 and "`resnet50_w4x`" in TEXT
