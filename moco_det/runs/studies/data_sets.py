"""The data of a study: made here from a recipe, or a folder of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from moco_det.data import load_dataset
from moco_det.data.crops import write_crops
from moco_det.data.mosaics import write_mosaics
from moco_det.data.scenes import write_scenes
from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import did_you_mean
from moco_det.runs.studies.study import StudyPlan

PAINTED = ("striped_disk", "checked_square", "dotted_triangle", "ringed_star")


def painted(folder: Path, arguments: Mapping[str, Any]) -> None:
    """scenes/ as `write_scenes` makes it, and the objects of both splits in crops/SPLIT/CLASS/."""
    defaults = {"seed": 0, "unlabelled": 10_000, "train": 100, "test": 150, "size": 96}
    options = {**defaults, "classes": PAINTED, "objects": (1, 4), **arguments}
    options["objects"] = tuple(options["objects"])
    paths = write_scenes(folder / "scenes", **options)
    for split, uri in (("train", paths.train), ("test", paths.test)):
        crops = folder / "crops" / split
        if not crops.is_dir():
            write_crops(load_dataset(uri), crops)


def mosaics(folder: Path, arguments: Mapping[str, Any]) -> None:
    """photos/, probe/, unseen/ and coco/ as `write_mosaics` makes them, of the photos in `of`."""
    options = {"seed": 0, **arguments}
    if "of" not in options:
        raise InputError("mosaics are made of photos: write {mosaics: {of: $NAME}}")
    write_mosaics(options.pop("of"), folder, **options)


BUILDERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    "painted": painted,
    "mosaics": mosaics,
}


def read_given(words: Sequence[str]) -> dict[str, Path]:
    """The folders of NAME=DIR words."""
    given = {}
    for word in words:
        name, _, folder = word.partition("=")
        if not name or not Path(folder).is_dir() or not folder:
            raise InputError(f"--data {word}: write NAME=DIR, a folder that is there")
        given[name] = Path(folder).resolve()
    return given


def folders_of(
    recipes: Mapping[str, Mapping[str, Any]], given: Mapping[str, Path], output: Path
) -> dict[str, str]:
    """Where each data set is or will be; InputError where nobody says how it comes about."""
    for name in given:
        if name not in recipes:
            raise InputError(f"--data {name}=...: no such data set{did_you_mean(name, recipes)}")
    found = {}
    for name, recipe in recipes.items():
        unknown = [builder for builder in recipe if builder not in BUILDERS]
        if unknown or len(recipe) > 1:
            raise InputError(f"the data set {name}: write one of {', '.join(BUILDERS)}, or {{}}")
        if name not in given and not recipe:
            raise InputError(f"the data set {name} is yours to name: add --data {name}=DIR")
        found[name] = str(given.get(name, (output / "data" / name).resolve()))
    return found


def make_data(
    recipes: Mapping[str, Mapping[str, Any]], given: Mapping[str, Path], folders: Mapping[str, str]
) -> None:
    """Make what is not there yet; it shows its progress."""
    for name, recipe in recipes.items():
        for builder, arguments in recipe.items() if name not in given else ():
            words = {key: in_folders(value, folders) for key, value in (arguments or {}).items()}
            try:
                BUILDERS[builder](Path(folders[name]), words)
            except TypeError as error:
                raise InputError(f"the data set {name}: {error}") from None


def in_folders(value: Any, folders: Mapping[str, str]) -> Any:
    """A value with the folders of data sets in the place of their $NAMEs."""
    if isinstance(value, list | tuple):
        return [in_folders(one, folders) for one in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    try:
        return Template(value).substitute(folders)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{value!r} names a data set that the study does not have: its 'data' are "
            f"{', '.join(folders) or 'none'}"
        ) from error


def all_recipes(studies: Sequence[StudyPlan]) -> dict[str, Mapping[str, Any]]:
    """The data sets of all studies; InputError where two mean different ones by one name."""
    found: dict[str, Mapping[str, Any]] = {}
    for study in studies:
        for name, recipe in study.data.items():
            if found.setdefault(name, recipe) != recipe:
                raise InputError(
                    f"the data set {name} is another in {study.name}: run that study into a folder "
                    "of its own"
                )
    return found
