"""The configs that come with the package, by name.

from moco_det import zoo
cfg.merge_from_file(zoo.get_config_file("coco_R50_FPN_2x_moco"))
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from moco_det.foundation.errors import InputError

__all__ = ["folder", "get_config_file", "names"]


def folder() -> Path:
    """The folder of the installed configs."""
    return Path(str(resources.files("moco_det_configs")))


def names() -> list[str]:
    """{stem}_{arm} of every detection config, for example "voc_R50_C4_24k_moco", sorted."""
    return sorted(file.stem for file in folder().glob("*.yaml"))


def get_config_file(name: str) -> str:
    """The path of a config's yaml file, with or without ".yaml" in the name; else InputError."""
    known = names()
    stem = name.removesuffix(".yaml")
    if stem not in known:
        near = difflib.get_close_matches(stem, known, n=3, cutoff=0.4)
        shown = f"; did you mean {', '.join(near)}?" if near else ""
        raise InputError(
            f"no config named {name!r} among the {len(known)} of moco_det.zoo.names(){shown}"
        )
    return str(folder() / f"{stem}.yaml")
