"""The data of a study: made here from a recipe, or a folder of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moco_det.data import load_dataset
from moco_det.data.crops import write_crops
from moco_det.data.mosaics import write_mosaics
from moco_det.data.scenes import SCENE_CLASSES, write_scenes
from moco_det.foundation import declared
from moco_det.foundation.atomic import locked, make_folder
from moco_det.foundation.declared import within
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import CLAIM, open_lock
from moco_det.foundation.strict_yaml import did_you_mean
from moco_det.runs.quickstart.data_sets import CLOSE_UPS, LABELLED, PAINTED
from moco_det.runs.studies.study import StudyPlan

_NAMED = re.compile(r"\$(\w+|\{\w+\})")


@dataclass
class Painted:
    """A painted world: scenes/ as `write_scenes` makes it, the objects of both splits in crops/."""

    seed: int = within(0, 2**63 - 1, 0)
    unlabelled: int = within(0, 10**6, CLOSE_UPS)
    train: int = within(1, 10**6, LABELLED)
    test: int = within(1, 10**6, 150)
    size: int = within(48, 1024, 96)
    classes: list[Any] = field(default_factory=lambda: list(PAINTED))
    objects: list[Any] = field(default_factory=lambda: [1, 4])

    def __post_init__(self) -> None:
        for name in self.classes or ["none"]:
            if name not in SCENE_CLASSES or self.classes.count(name) > 1:
                known = ", ".join(SCENE_CLASSES)
                raise InputError(f"classes: {name!r} is none, or given twice; there are {known}")
        whole = len(self.objects) == 2 and all(type(n) is int for n in self.objects)
        if not whole or not 1 <= self.objects[0] <= self.objects[1] <= 20:
            raise InputError(f"objects is {self.objects}: write [LEAST, MOST], of 1 to 20")

    def make(self, folder: Path) -> None:
        """Write what is not there yet."""
        paths = write_scenes(
            folder / "scenes",
            seed=self.seed,
            unlabelled=self.unlabelled,
            train=self.train,
            test=self.test,
            size=self.size,
            classes=self.classes,
            objects=(self.objects[0], self.objects[1]),
        )
        for split, uri in (("train", paths.train), ("test", paths.test)):
            crops = folder / "crops" / split
            if not crops.is_dir():
                write_crops(load_dataset(uri), crops)


@dataclass
class Mosaics:
    """Detection sets of photos: photos/, probe/, unseen/ and coco/ as `write_mosaics` has them."""

    of: str = ""
    seed: int = within(0, 2**63 - 1, 0)
    pretrain: int = within(1, 10**6, 75)
    unseen: int = within(0, 10**4, 0)
    classes: int = within(1, 10**4, 20)
    train: int = within(1, 10**6, 400)
    test: int = within(1, 10**6, 300)
    size: int = within(48, 1024, 192)
    probe: list[Any] = field(default_factory=lambda: [50, 25])

    def __post_init__(self) -> None:
        if not self.of:
            raise InputError("mosaics are made of photos: write {mosaics: {of: $NAME}}")
        if len(self.probe) != 2 or not all(type(n) is int and n > 0 for n in self.probe):
            raise InputError(f"probe is {self.probe}: write [TRAIN, TEST] photos per class")

    def make(self, folder: Path) -> None:
        """Write what is not there yet."""
        options = {**vars(self), "probe": (self.probe[0], self.probe[1])}
        write_mosaics(options.pop("of"), folder, **options)


BUILDERS: dict[str, type[Painted] | type[Mosaics]] = {"painted": Painted, "mosaics": Mosaics}


@dataclass(frozen=True)
class StudyData:
    """The data sets of studies by name: their recipes, and the folders of those that are given."""

    recipes: Mapping[str, Mapping[str, Any]]
    given: Mapping[str, Path]
    output: Path

    @property
    def folders(self) -> dict[str, str]:
        """Where each is or will be."""
        made = (self.output / "data").resolve()
        return {name: str(self.given.get(name, made / name)) for name in self.recipes}

    def described(self, content: Any) -> dict[str, Any]:
        """What the data sets named in a content are: a part of the key of what is made of them."""
        named = {word.strip("{}") for word in _NAMED.findall(str(content))} & set(self.recipes)
        found: dict[str, Any] = {}
        for name in sorted(named):
            recipe = self.recipes[name]
            found[name] = str(self.given[name]) if name in self.given else recipe
            if name not in self.given:
                found |= self.described(recipe)
        return found

    def placed(self, value: Any) -> Any:
        """A value with the folders of data sets in the place of their $NAMEs."""
        if isinstance(value, list | tuple):
            return [self.placed(one) for one in value]
        if not isinstance(value, str):
            return value
        return _NAMED.sub(self._folder, value)

    def _folder(self, word: re.Match[str]) -> str:
        name = word[1].strip("{}")
        if name not in self.recipes:
            known = ", ".join(self.recipes) or "none"
            raise InputError(
                f"{word.string!r} names a data set that the study does not have: its 'data' are "
                f"{known}"
            )
        return self.folders[name]

    @property
    def _made(self) -> list[tuple[str, str]]:
        """The data sets that are made here, each with what makes it."""
        mine = {name: recipe for name, recipe in self.recipes.items() if name not in self.given}
        return [(name, builder) for name, recipe in mine.items() for builder in recipe]

    def make(self) -> None:
        """Make what is not there yet, which another process waits for; it shows its progress."""
        if not self._made:
            return
        lock = open_lock(make_folder(self.output) / f"{CLAIM}.data")
        with open(lock, "ab") as file, locked(file):
            for name, builder in self._made:
                try:
                    self._recipe(name, builder).make(Path(self.folders[name]))
                except InputError as error:
                    raise InputError(f"the data set {name}: {error}") from None

    def check(self) -> None:
        """InputError where nobody says how a data set comes about, or says it wrongly."""
        for name, recipe in self.recipes.items():
            here = f"the data set {name}"
            if not isinstance(recipe, dict) or len(recipe) > 1 or not set(recipe) <= set(BUILDERS):
                raise InputError(
                    f"{here}: write one of {', '.join(BUILDERS)} with its keys, or {{}}"
                )
            if name not in self.given and not recipe:
                raise InputError(f"{here} is yours to name: add --data {name}=DIR")
        for name, builder in self._made:
            self._recipe(name, builder)

    def _recipe(self, name: str, builder: str) -> Painted | Mosaics:
        given = self.recipes[name][builder]
        words = {} if given is None else given
        if isinstance(words, dict):
            words = {key: self.placed(value) for key, value in words.items()}
        return declared.read(BUILDERS[builder], words, f"the data set {name}")


def read_data(studies: Sequence[StudyPlan], words: Sequence[str], output: Path) -> StudyData:
    """The data sets of all studies, of which NAME=DIR words give some.

    InputError where two studies mean different ones by one name, or have one name themselves.
    """
    if len({study.name for study in studies}) < len(studies):
        raise InputError("two studies have one name: give their files different ones")
    recipes: dict[str, Mapping[str, Any]] = {}
    for study in studies:
        for name, recipe in study.data.items():
            if recipes.setdefault(name, recipe) != recipe:
                raise InputError(
                    f"the data set {name} is another in {study.name}: run that study into a folder "
                    "of its own"
                )
    given: dict[str, Path] = {}
    for word in words:
        name, _, folder = word.partition("=")
        if not folder or not Path(folder).is_dir() or name in given:
            raise InputError(f"--data {word}: write NAME=DIR, a folder that is there, once each")
        if name not in recipes:
            raise InputError(f"--data {name}=...: no such data set{did_you_mean(name, recipes)}")
        given[name] = Path(folder).resolve()
    data = StudyData(recipes, given, output)
    data.check()
    return data
