"""The matrix of configs as files: one for each stem in configs/base, one leaf for each of its arms.

The files are made here and nowhere else; `tests/test_configs.py` holds them to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from moco_det.foundation.atomic import write_text
from moco_det.results.published import PublishedRow, PublishedTable, find_table
from moco_det.settings.zoo import folder
from moco_det.settings.zoo.arms import ARMS, Arm
from moco_det.settings.zoo.stems import STEMS, Stem

# ruler of a published column -> how a header names it
RULERS = {"voc": "", "bbox": "box ", "segm": "mask ", "keypoints": "keypoint "}
MADE = "Made by tools/make_configs.py."


def files() -> dict[str, str]:
    """{path below configs/: text} of every file of the matrix."""
    found = {f"base/{name}.yaml": render_stem(stem) for name, stem in STEMS.items()}
    for stem in STEMS:
        for arm in STEMS[stem].arms:
            found[f"{stem}_{arm}.yaml"] = render_leaf(stem, arm)
    return found


def write(target: Path) -> list[Path]:
    """Write every file of the matrix below a folder; the paths whose text changed.

    The detectors that the matrix builds on are written by hand; where the folder has none of its
    own, it gets those of the package.
    """
    changed = []
    wanted = files()
    for name in {f"base/{stem.base}.yaml" for stem in STEMS.values()} - wanted.keys():
        if not (target / name).is_file():
            wanted[name] = (folder() / name).read_text(encoding="utf-8")
    for name, text in wanted.items():
        path = target / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            changed.append(path)
    return changed


def render_stem(stem: Stem) -> str:
    """What the arms of a table share."""
    lines = [f"# {stem.what}: what every arm shares.", f"# {MADE}"]
    if stem.note:
        lines.append(f"# Note: {stem.note}.")
    return "\n".join([*lines, as_yaml({"_BASE_": f"{stem.base}.yaml", **stem.keys})])


def render_leaf(name: str, arm_name: str) -> str:
    """What is this arm's own, under what it is, its published number, cost and command."""
    stem, arm = STEMS[name], ARMS[arm_name]
    lines = [
        f"# {stem.what}, from {arm.what}.",
        f"# Published: {published(stem, arm)}.",
        f"# Cost: {cost(stem)}.",
        f"# Command: python tools/train_net.py --config-file configs/{name}_{arm_name}.yaml "
        "--num-gpus 8",
    ]
    if arm.convert:
        lines.append(f"# Weights: {arm.convert}")
    if stem.note:
        lines.append(f"# Note: {stem.note}.")
    tree: dict[str, Any] = {"_BASE_": f"base/{name}.yaml", "MODEL": {"WEIGHTS": arm.weights}}
    for key, value in arm.input.items():
        node = tree
        *above, last = key.split(".")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return "\n".join([*lines, as_yaml({**tree, "OUTPUT_DIR": f"runs/{name}_{arm_name}"})])


def published(stem: Stem, arm: Arm) -> str:
    """The published numbers of a setting and an arm with their source, or that there are none."""
    found = published_row(stem, arm)
    if found is None:
        return arm.note or "none published"
    table, row = found
    groups: dict[str, list[str]] = {}
    for column, value in row.values.items():
        ruler, _, key = column.partition(".")
        groups.setdefault(ruler, []).append(f"{key} {value}")
    numbers = "; ".join(RULERS[ruler] + ", ".join(cells) for ruler, cells in groups.items())
    trials = f", mean of {table.trials} trials" if table.trials else ""
    kind = ", a reproduction" if table.id.startswith("repro.") else ""
    return f"{numbers} ({table.citation}{kind}{trials})"


def published_row(stem: Stem, arm: Arm) -> tuple[PublishedTable, PublishedRow] | None:
    """The first published row of this setting and arm."""
    taken = {other.row for other in ARMS.values()}
    for table in map(find_table, stem.tables):
        for row in table.rows:
            by_method = row.method == arm.method and row.key not in taken
            if row.pretrained_on not in ("none", "imagenet1k"):
                continue
            if row.key == arm.row if arm.row else by_method:
                return table, row
    return None


def cost(stem: Stem) -> str:
    """The time of a run; estimated from another's figures, and said so."""
    hours = stem.iterations * stem.seconds / 3600
    return (
        f"about {hours:.1f} hours on 8 V100s, estimated from detectron2's model zoo "
        f"({stem.like}, frozen BN: {stem.seconds:.3f} s an iteration); not run by this project"
    )


def as_yaml(tree: Mapping[str, Any]) -> str:
    """Keys in the order given, lists in one line."""
    text: str = yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, width=1000)
    return text


class _Dumper(yaml.SafeDumper):
    """Nested keys in block style, lists in flow style."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: Any = None
    ) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)

    def ignore_aliases(self, data: Any) -> bool:
        return True
