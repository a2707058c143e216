"""The runs of a suite: every initialisation in every setting with every seed.

A run is keyed by the text of its config, the sha256 of its weights, its seed and its engine. The
key is part of its folder's name, and so of its row: a finished row is found again, and a changed
config, other weights or another engine are other runs, beside the old ones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moco_det import __version__
from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import nest
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.results.matched import (
    BUILDER_KEY,
    FREEZE_KEY,
    INPUT_KEYS,
    TIMM_BACKBONE,
    WEIGHTS_KEY,
)
from moco_det.runs.row import version_of
from moco_det.runs.suites.suite import MOST_SEEDS, NAME, SuiteSetting
from moco_det.runs.weights_file import ready_weights
from moco_det.settings.config import check, get_cfg, merge, set_values
from moco_det.settings.values import schedule_warnings
from moco_det.weights.architectures import detector_keys
from moco_det.weights.backbone import load_backbone
from moco_det.weights.download import is_address

SUPERVISED = ("supervised", "sup")
RANDOM = "random"


@dataclass(frozen=True)
class SuiteArm:
    """One initialisation; `input` is what its weights say of colours, scale and stride."""

    name: str
    weights: Path | None
    sha256: str | None
    input: Mapping[str, Any]
    architecture: str | None = None

    @property
    def absent(self) -> bool:
        """Whether the weights are not there yet: a run's name holds their sha256."""
        return self.weights is not None and self.sha256 is None

    def keys(self) -> dict[str, Any]:
        """The config keys that the weights' own metadata demands."""
        found = {key: self.input.get(field) for key, field in INPUT_KEYS.items()}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Run:
    """One cell of the matrix; `name` is its folder's and its row's."""

    setting: SuiteSetting
    arm: SuiteArm
    seed: int
    engine: str
    version: str

    @cached_property
    def key(self) -> str:
        """Ten hex digits of what makes the run."""
        parts = [self.setting.text, self.arm.keys(), self.arm.sha256, self.seed]
        text = json.dumps([*parts, self.engine, self.version], sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:10]

    @property
    def name(self) -> str:
        """ "moco_seed0_1f2e3d4c5b"."""
        return f"{self.arm.name}_seed{self.seed}_{self.key}"

    def folder(self, output: Path) -> Path:
        """Where the run writes: OUTPUT/runs/SETTING/NAME."""
        return output / "runs" / self.setting.name / self.name

    def config_file(self, output: Path) -> Path:
        """The setting's config, self-contained: OUTPUT/configs/DIGEST/SETTING.yaml.

        Two calls may mean different settings by one name.
        """
        digest = hashlib.sha256(self.setting.text.encode("utf-8")).hexdigest()[:6]
        return output / "configs" / digest / f"{self.setting.name}.yaml"

    def options(self, output: Path) -> list[str]:
        """What `moco-det train-net` is told beside --num-gpus."""
        keys: dict[str, Any] = {
            "MODEL.WEIGHTS": str(self.arm.weights.resolve()) if self.arm.weights else "",
            **self.arm.keys(),
            "OUTPUT_DIR": str(self.folder(output)),
            "SEED": self.seed,
        }
        return [
            *("--config-file", str(self.config_file(output)), "--engine", self.engine),
            *("--init-name", self.arm.name, "--results", str(output / "results.jsonl")),
            "--resume",
            *(text for key, value in keys.items() for text in (key, _literal(value))),
        ]


def _literal(value: Any) -> str:
    """A value as Python reads it, with the quotes that a shell needs no more quotes for."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def read_weights(given: Sequence[str]) -> dict[str, str]:
    """The files of "NAME=FILE" words by name; InputError for a name given twice."""
    files: dict[str, str] = {}
    for word in given:
        name, _, path = word.partition("=")
        if not path or not re.fullmatch(NAME, name):
            raise InputError(
                f"--weights {word}: write NAME=FILE, the name of letters, digits and . _ + -"
            )
        if name == RANDOM:
            raise InputError("--weights random=...: the random arm has no weights; leave it out")
        if name in files:
            raise InputError(f"--weights: the name {name} is given twice")
        files[name] = path
    return files


def read_arms(
    given: Sequence[str],
    *,
    random: bool = True,
    supervised: bool = True,
    default_supervised: Path | None = None,
    may_be_absent: bool = False,
) -> list[SuiteArm]:
    """The arms of "NAME=FILE" words, with the random and the supervised one unless refused.

    Every weights file is fetched, converted where it is no backbone, and checked here, before the
    first run; files that are not there may be absent from a dry run. Raises InputError for a name
    given twice, a file that cannot be converted, and a supervised arm that nobody named.
    """
    files: dict[str, str | Path] = {**read_weights(given)}
    if supervised and not any(name in SUPERVISED for name in files):
        there = default_supervised is not None and default_supervised.is_file()
        if not there and not may_be_absent:
            looked = f" ({default_supervised} is not there)" if default_supervised else ""
            raise InputError(
                f"no supervised arm to compare with{looked}: add supervised=FILE to --weights, "
                "or refuse it with --no-supervised"
            )
        files["supervised"] = default_supervised or Path("supervised.pkl")
    arms = [SuiteArm(RANDOM, None, None, {})] if random else []
    for name, given_as in sorted(files.items(), key=lambda item: item[0] not in SUPERVISED):
        if may_be_absent and not is_address(given_as) and not Path(given_as).exists():
            arms.append(SuiteArm(name, Path(given_as), None, {}))
            continue
        file = ready_weights(given_as)
        weights = load_backbone(file)
        arms.append(
            SuiteArm(name, file, weights.sha256, dict(weights.input or {}), weights.architecture)
        )
    if not arms:
        raise InputError("nothing to run: give --weights NAME=FILE, or leave out --no-random")
    return arms


def check_settings(
    settings: Sequence[SuiteSetting], arms: Sequence[SuiteArm], *, engine: str
) -> list[str]:
    """InputError, before the first run, for a setting without data or that an engine refuses.

    And for weights of another backbone than a setting's. Returns warnings.
    """
    warnings = []
    for setting in settings:
        if not all(setting.keys.get(f"DATASETS.{part}") for part in ("TRAIN", "TEST")):
            raise InputError(f"the setting {setting.name} names no data: give --data TRAIN TEST")
        for arm in arms:
            check_architecture(setting, arm)
        if engine == "standalone":
            cfg = get_cfg()
            merge(cfg, nest(setting.keys), source=f"the suite's setting {setting.name}")
            arm = next((arm for arm in arms if not leaves_out(setting, arm)), arms[0])
            check(set_values(cfg, [WEIGHTS_KEY, str(arm.weights or "")]))
            late = schedule_warnings(cfg.SOLVER)
            warnings += [f"the setting {setting.name}: {one}" for one in late]
    return warnings


def leaves_out(setting: SuiteSetting, arm: SuiteArm) -> bool:
    """Whether the arm is random and the setting freezes stages, which would never learn."""
    return arm.weights is None and setting.keys.get(FREEZE_KEY, 0) != 0


def check_architecture(setting: SuiteSetting, arm: SuiteArm) -> None:
    """InputError for weights of another backbone than the setting's."""
    needed = detector_keys(arm.architecture) if arm.architecture else {}
    if setting.keys.get(BUILDER_KEY) == TIMM_BACKBONE and arm.architecture in ARCHITECTURES:
        raise InputError(
            f"{arm.weights} of the arm {arm.name} is a {arm.architecture}, but the setting "
            f"{setting.name} has a {setting.keys.get('MODEL.TIMM.NAME')} of timm: arms are "
            "compared in one detector, so give weights of that network"
        )
    defaults = ARCHITECTURES["resnet50"].keys  # detectron2's
    has = {key: setting.keys.get(key, defaults.get(key, "''")) for key in needed}
    wrong = [key for key in needed if has[key] != needed[key]]
    if wrong:
        raise InputError(
            f"{arm.weights} of the arm {arm.name} is a {arm.architecture}, but the setting "
            f"{setting.name} has {', '.join(f'{key} {has[key]}' for key in wrong)}: add "
            f"{' '.join(f'--set {key} {needed[key]}' for key in wrong)}, or give weights "
            "of the setting's backbone"
        )


def build_matrix(
    settings: Sequence[SuiteSetting],
    arms: Sequence[SuiteArm],
    seeds: Sequence[int],
    *,
    engine: str,
    only: str | None = None,
) -> list[Run]:
    """Every run, seed by seed: a matrix that is stopped early has equal trials in every arm.

    Settings with frozen stages have no random arm.

    Of detectron2 what its installation says keys the runs. `only` names a single run.
    """
    version = __version__ if engine == "standalone" else version_of("detectron2")
    runs = [
        Run(setting, arm, seed, engine, version)
        for seed in seeds
        for setting in settings
        for arm in arms
        if not leaves_out(setting, arm)
    ]
    found = [run for run in runs if only in (None, run.name)]
    if not found:
        raise InputError(
            f"--only {only}: no such run in this matrix; its weights, config or engine have "
            "changed since the list was written"
        )
    return found


def read_seeds(given: str | None, default: int) -> list[int]:
    """ "5" is the seeds 0 to 4, "0,3,7" are these, "5," is that one."""
    text = str(default) if given is None else given
    try:
        seeds = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        seeds = []
    if len(seeds) == 1 and "," not in text:
        seeds = list(range(seeds[0])) if seeds[0] <= MOST_SEEDS else []
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**31 or len(set(seeds)) != len(seeds):
        raise InputError(
            f"--seeds {text!r}: write how many, 5 (at most {MOST_SEEDS}), or which, 0,3,7, none "
            "twice"
        )
    return seeds
