"""The matrix of configs as files: one per arm of each table, over the table's file in configs/base.

They are made here and nowhere else; `tests/settings/test_configs.py` compares them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from moco_det.foundation.atomic import write_text
from moco_det.foundation.strict_yaml import load_yaml, nest
from moco_det.results.published import PublishedRow, PublishedTable, find_table
from moco_det.settings.zoo import folder
from moco_det.settings.zoo.arms import Initialisation
from moco_det.settings.zoo.stems import SECONDS, STEMS, ConfigStem

# metric of a published column -> how a header names it
METRICS = {"voc": "", "bbox": "box ", "segm": "mask ", "keypoints": "keypoint "}


def files() -> dict[str, str]:
    """{file name: text} of every arm of every table."""
    return {
        f"{name}_{arm}.yaml": render(name, arm) for name in STEMS for arm in STEMS[name].initial
    }


def write(target: Path) -> list[Path]:
    """Write every file of the matrix below a folder; the paths whose text changed.

    The detectors below the tables stay where the folder has its own.
    """
    wanted = files()
    for file in sorted((folder() / "base").glob("*.yaml")):
        name = f"base/{file.name}"
        if file.stem in STEMS or not (target / name).is_file():
            wanted[name] = file.read_text(encoding="utf-8")
    changed = []
    for name, text in wanted.items():
        path = target / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            changed.append(path)
    return changed


def render(name: str, arm_name: str) -> str:
    """What is this arm's own, under what it is, its published number, cost and command."""
    stem = STEMS[name]
    arm = stem.initial[arm_name]
    lines = [
        f"# {stem.what}, from {arm.what}.",
        f"# Published: {published(stem, arm)}.",
        f"# Cost: {cost(name)}.",
        f"# Command: moco-det train-net --config-file {name}_{arm_name} --num-gpus 8",
    ]
    if arm.weights:
        lines.append(f"# Weights: moco-det convert-weights {arm.checkpoint} {arm.weights}")
    if stem.note:
        lines.append(f"# Note: {stem.note}.")
    own = nest({"MODEL.WEIGHTS": arm.weights, **arm.input})
    tree = {"_BASE_": f"base/{name}.yaml", **own, "OUTPUT_DIR": f"runs/{name}_{arm_name}"}
    return "\n".join([*lines, yaml.dump(tree, Dumper=_FlowLists, sort_keys=False, width=1000)])


def published(stem: ConfigStem, arm: Initialisation) -> str:
    """The published numbers of a setting and an arm with their source, or that there are none."""
    found = published_row(stem, arm)
    if found is None:
        return arm.note or "none published"
    table, row = found
    groups: dict[str, list[str]] = {}
    for column, value in row.values.items():
        metric, _, key = column.partition(".")
        groups.setdefault(metric, []).append(f"{key} {value}")
    numbers = "; ".join(METRICS[metric] + ", ".join(cells) for metric, cells in groups.items())
    trials = f", mean of {table.trials} trials" if table.trials else ""
    kind = ", a reproduction" if table.id.startswith("repro.") else ""
    return f"{numbers} ({table.citation}{kind}{trials})"


def published_row(
    stem: ConfigStem, arm: Initialisation
) -> tuple[PublishedTable, PublishedRow] | None:
    """The first published row of this setting and arm."""
    taken = {other.row for other in stem.initial.values()}
    for table in map(find_table, stem.tables):
        for row in table.rows:
            by_method = row.method == arm.method and row.key not in taken
            mine = row.key == arm.row if arm.row else by_method
            if mine and row.pretrained_on in ("none", arm.data):
                return table, row
    return None


def cost(name: str) -> str:
    """The time of a run; estimated from another's figures, and said so."""
    if not STEMS[name].like:
        return "not estimated; not run by this project"
    stem, keys = STEMS[name], load_yaml(folder() / "base" / f"{name}.yaml")
    seconds = SECONDS[stem.like]
    hours = keys["SOLVER"]["MAX_ITER"] * seconds / 3600
    return (
        f"about {hours:.1f} hours on 8 V100s, estimated from detectron2's model zoo "
        f"({stem.like}, frozen BN: {seconds:.3f} s per iteration); not run by this project"
    )


class _FlowLists(yaml.SafeDumper):
    """Nested keys in block style, lists in one line."""


def _flow_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_FlowLists.add_representer(list, _flow_list)
