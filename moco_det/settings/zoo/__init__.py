"""The configs that come with the package, by name.

from moco_det import zoo
cfg.merge_from_file(zoo.get_config_file("coco_R50_FPN_2x_moco"))
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import did_you_mean

__all__ = ["find_config", "find_suite", "folder", "get_config_file", "names"]

DETECTION = ("*.yaml", "quick/*.yaml")
PRETRAINING = ("pretrain/**/*.yaml",)
CONFIGS = (*DETECTION, *PRETRAINING)


def folder() -> Path:
    """The folder of the installed configs."""
    return Path(str(resources.files("moco_det_configs")))


def names(patterns: Sequence[str] = CONFIGS) -> list[str]:
    """Every config by its path below the folder, without ".yaml", sorted.

    "coco_R50_FPN_2x_moco" trains a detector, "quick/R18_FPN" one on a laptop, and
    "pretrain/moco_v1_r50_in1m_200ep" an encoder.
    """
    files = [file for pattern in patterns for file in folder().glob(pattern)]
    return sorted(file.relative_to(folder()).with_suffix("").as_posix() for file in files)


def get_config_file(name: str) -> str:
    """The path of a config's yaml file, with or without ".yaml" in the name; else InputError.

    Folders may be left out: "R18_FPN" is "quick/R18_FPN".
    """
    known = names()
    return _look_up(
        name, known, f"no config named {name!r} among the {len(known)} of moco_det.zoo.names()"
    )


def find_config(given: str, beside: Path = Path(), *, patterns: Sequence[str] = DETECTION) -> str:
    """The path of the config that a user names: a file, relative to `beside`, else by its name."""
    if (beside / given).is_file():
        return str(beside / given)
    kind = "detection" if patterns == DETECTION else "pre-training"
    absent = (
        f"config file {given or repr(given)} does not exist, and no {kind} config has this name"
    )
    listing = '; python -c "from moco_det import zoo; print(*zoo.names())" lists them'
    return _look_up(given, names(patterns), absent, listing)


def find_suite(given: str) -> Path:
    """The same for a suite of `moco-det benchmark`: a yaml file, or one of configs/suites."""
    if Path(given).is_file():
        return Path(given)
    known = names(["suites/*.yaml"])
    shown = ", ".join(name.removeprefix("suites/") for name in known)
    return Path(_look_up(given, known, f"--suite {given}: no such file, and no suite of {shown}"))


def find_study(given: str) -> Path:
    """The same for a study of `moco-det study`: a yaml file, or one below configs/studies."""
    if Path(given).is_file():
        return Path(given)
    known = names(["studies/**/*.yaml"])
    shown = ", ".join(name.removeprefix("studies/") for name in known)
    whole = f"studies/{given.removesuffix('.yaml')}"
    name = whole if whole in known else given
    return Path(_look_up(name, known, f"study {given}: no such file, and none of {shown}"))


def _look_up(name: str, known: Sequence[str], absent: str, otherwise: str = "") -> str:
    spelled = {one.rpartition("/")[2]: one for one in known} | {one: one for one in known}
    stem = name.removesuffix(".yaml")
    if stem not in spelled:
        raise InputError(absent + (did_you_mean(stem, spelled, most=3) or otherwise))
    return str(folder() / f"{spelled[stem]}.yaml")
