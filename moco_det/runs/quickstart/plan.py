"""Everything that decides a quickstart's numbers, kept in its folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moco_det.foundation.atomic import make_folder, write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_LABELS, read_json

# The arms with the pre-training config of each; random weights need none.
ARMS: dict[str, str | None] = {
    "random": None,
    "supervised": "pretrain/quick/demo_supervised_r18",
    "moco": "pretrain/quick/demo_moco_r18",
    "instdisc": "pretrain/quick/demo_inst_disc_r18",
}

# Steps of each encoder and of each run on the painted scenes; on one's own data minutes set them.
PAINTED_STEPS = (2000, 200)
MINUTES = 10


@dataclass(frozen=True)
class Budget:
    """Which arms are run, how long and how often."""

    arms: tuple[str, ...]
    seed: int  # of the painter and the encoders; the runs count on from a hundred times it
    seeds: int  # runs per arm
    pretrain_steps: int  # of each encoder
    finetune_steps: int  # of each run
    minutes: int = 0  # that the steps were chosen for; 0: not by time


@dataclass(frozen=True)
class QuickstartPlan:
    """What is pre-trained on, fine-tuned on and tested on, and the budget of it."""

    train: dict[str, str]  # data set by setting
    test: str
    unlabelled: str  # a folder of images or a list of them; empty: encoders that are there already
    classes: int
    masks: bool
    detector: str  # the config of the runs by its name; it says nothing of data
    budget: Budget
    mask_format: str = "polygon"
    source: str = ""  # where one's own data lie
    architecture: str = ""  # of the encoders that are brought; else the detector's own

    @property
    def setting(self) -> str:
        """The name of the setting with all labelled images; others are called after it."""
        return setting_name(self.detector, self.architecture)

    @property
    def detector_seeds(self) -> range:
        """The seeds of the runs of an arm."""
        first = 100 * self.budget.seed
        return range(first, first + self.budget.seeds)


def setting_name(detector: str, architecture: str) -> str:
    """The config's name with the ResNet that takes the place of its own."""
    stem = Path(detector).stem
    return f"{stem.partition('_')[0]}_{architecture}_FPN" if architecture else stem


# What only adds runs to those that are there.
_GROWS = ("seeds", "arms", "train")


def recall(output: Path) -> dict[str, Any]:
    """The plan that a folder's results were made by; empty where there is none."""
    file = output / "quickstart.json"
    try:
        return dict(read_json(file, "plan", MOST_LABELS)) if os.path.lexists(file) else {}
    except (ValueError, TypeError, InputError):
        raise InputError(f"{file} is damaged: name another folder with -o") from None


def remember(plan: QuickstartPlan, output: Path) -> None:
    """Note the plan in its folder; a folder with another plan's results is refused."""
    now = json.loads(json.dumps({**asdict(plan), **asdict(plan.budget)}))
    del now["budget"]
    before = recall(output)
    changed = [key for key in now if before.get(key, now[key]) != now[key] and key not in _GROWS]
    if changed:
        raise InputError(
            f"{output} holds results of other settings ({', '.join(changed)} differ): "
            "name another folder with -o"
        )
    make_folder(output)
    write_text(output / "quickstart.json", json.dumps(now, indent=1) + "\n")
