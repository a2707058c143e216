"""Everything that decides a quickstart's numbers, kept in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from moco_det.foundation.atomic import make_folder, write_text
from moco_det.foundation.errors import InputError

# The arms with the pre-training config of each; random weights need none.
ARMS: dict[str, str | None] = {
    "random": None,
    "supervised": "pretrain/quick/demo_supervised_r18",
    "moco": "pretrain/quick/demo_moco_r18",
    "instdisc": "pretrain/quick/demo_inst_disc_r18",
}


@dataclass(frozen=True)
class Budget:
    """Which arms are run, how long and how often."""

    arms: tuple[str, ...]
    seed: int  # of the painter and the encoders; the runs count on from a hundred times it
    seeds: int  # runs per arm
    pretrain_steps: int  # of each encoder
    finetune_steps: int  # of each run


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

    @property
    def setting(self) -> str:
        """The name of the setting with all labelled images; others are called after it."""
        return Path(self.detector).stem

    @property
    def detector_seeds(self) -> range:
        """The seeds of the runs of an arm."""
        first = 100 * self.budget.seed
        return range(first, first + self.budget.seeds)


# What only adds runs to those that are there.
_GROWS = ("seeds", "arms", "train")


def remember(plan: QuickstartPlan, output: Path) -> None:
    """Note the plan in its folder; a folder with another plan's results is refused."""
    file = output / "quickstart.json"
    now = json.loads(json.dumps({**asdict(plan), **asdict(plan.budget)}))
    del now["budget"]
    if file.is_file():
        try:
            before = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, OSError):
            raise InputError(f"{file} is damaged: name another folder with -o") from None
        changed = [key for key in now if before.get(key) != now[key] and key not in _GROWS]
        if changed:
            raise InputError(
                f"{output} holds results of other settings ({', '.join(changed)} differ): "
                "name another folder with -o"
            )
    make_folder(output)
    write_text(file, json.dumps(now, indent=1) + "\n")
