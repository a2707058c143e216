"""What each protocol can be asked for; needs no torch, so that --help does not wait for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from moco_det.foundation.declared import check_value
from moco_det.foundation.errors import InputError


def option(
    default: Any, text: str, *, low: float = -math.inf, high: float = math.inf, **argument: Any
) -> Any:
    """A field that is an option of the command line, with its bounds and argparse's keywords."""
    # what fits an index, and a number in single precision
    high = min(high, 2**31 - 1 if argument.get("type", type(default)) is int else 3e38)
    if isinstance(default, bool):
        argument["action"] = "store_true"
    elif default is not None:
        argument |= {"type": type(default), "default": default}
        text += f" (default: {default})"
    argument["help"] = text
    return field(default=default, metadata={"bounds": (low, high), "argument": argument})


@dataclass(frozen=True)
class Checked:
    """Options whose numbers are finite and within their bounds; else InputError names the first."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = vars(self)[one.name]
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, (int, float)):
                    check_value(f"--{one.name.replace('_', '-')}", number, one.metadata)


@dataclass(frozen=True)
class Conditions(Checked):
    """What every protocol is measured under; `size` is the side of the views in pixels."""

    size: int = option(224, "of the views", low=32, high=8192)
    batch: int = option(128, "images at once", low=1)
    seed: int = option(0, "of random weights and of training", low=0)
    bfloat16: bool = False


@dataclass(frozen=True)
class KnnOptions(Checked):
    """InstDisc paper (Wu et al. 2018), Section 3.4.

    There the vote is over the embedding (`head`), and the training images' are rows of the bank.
    """

    protocol: ClassVar[str] = "knn"
    checkpoints: ClassVar[int | str] = "+"
    batch: ClassVar[int] = 128
    k: int = option(200, "neighbours that vote", low=1)
    temperature: float = option(0.07, "of the vote", low=1e-6)
    features: str = option(
        "pooled",
        "before the head, or after it as in the InstDisc paper, whose training images are the "
        "rows of its bank; here they are computed anew",
        choices=("pooled", "head"),
    )


@dataclass(frozen=True)
class LbfgsOptions(Checked):
    """A protocol of its own: its numbers stand beside no published one."""

    protocol: ClassVar[str] = "linear_lbfgs"
    checkpoints: ClassVar[int | str] = "+"
    batch: ClassVar[int] = 128
    l2: list[float] | None = option(
        None,
        "strengths to choose from (default: ten from 1 to 1e-5)",
        low=1e-12,
        type=float,
        nargs="+",
    )


def _milestones(*epochs: int) -> Any:
    text = f"of step (default: {epochs[0]} and {epochs[1]} of 100)"
    return option(None, text, type=int, nargs="*", metavar="EPOCH")


@dataclass(frozen=True)
class LinearOptions(Checked):
    """MoCo paper (He et al. 2020), Section 4.1: SGD over random crops, the rate divided by ten."""

    protocol: ClassVar[str] = "linear"
    checkpoints: ClassVar[int | str] = 1
    batch: ClassVar[int] = 256
    frozen: ClassVar[bool] = True  # whether the trunk stays as it is
    paper_milestones: ClassVar[tuple[int, ...]] = (60, 80)  # of 100 epochs
    epochs: int = option(100, "passes over the training images", low=1)
    lr: float = option(30.0, "learning rate", low=0)
    momentum: float = option(0.9, "of SGD", low=0)
    weight_decay: float = option(0.0, "of SGD", low=0)
    schedule: str = option("step", "of the rate", choices=("step", "cosine"))
    milestones: list[int] | None = _milestones(60, 80)
    gamma: float = option(0.1, "factor at a milestone", low=0)
    min_scale: float = option(0.08, "smallest crop, share of area", low=1e-3, high=1)
    workers: int = option(2, "processes that make the crops", low=0)
    cache_mb: int = option(0, "keep decoded images where they fit in this", low=0)
    output: Path | None = option(
        None, "keeps the classifier (default: a folder in runs/probe)", type=Path, metavar="DIR"
    )
    resume: bool = option(False, "continue what --output keeps")

    def __post_init__(self) -> None:
        super().__post_init__()
        late = [epoch for epoch in self.milestones or () if epoch >= self.epochs]
        if self.schedule == "step" and late:
            raise InputError(
                f"--milestones {late[0]} is never reached in --epochs {self.epochs}: name epochs "
                "below that"
            )

    def rates(self) -> tuple[float, float]:
        """The learning rates of the trunk and of the linear layer."""
        return 0.0, self.lr

    def drops(self) -> list[int]:
        """The epochs of the step schedule; the paper's keep their share of all epochs."""
        if self.schedule != "step":
            return []
        if self.milestones is not None:
            return self.milestones
        scaled = {round(epoch * self.epochs / 100) for epoch in self.paper_milestones}
        return sorted(epoch for epoch in scaled if 0 < epoch < self.epochs)

    def factor(self, step: int, steps: int) -> float:
        """What the base rates are multiplied by in a step, `steps` being those of an epoch."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / (steps * self.epochs)))
        return self.gamma ** sum(step // steps >= epoch for epoch in self.drops())

    def settings(self, batch: int) -> dict[str, Any]:
        """What two trainings in batches of so many images must have in common."""
        lr, head_lr = self.rates()
        names = ("epochs", "momentum", "weight_decay", "schedule", "gamma", "min_scale")
        settled = {"batch": batch, "lr": lr, "head_lr": head_lr, "milestones": self.drops()}
        return {**{name: vars(self)[name] for name in names}, **settled}


@dataclass(frozen=True)
class FinetuneOptions(LinearOptions):
    """MoCo paper (He et al. 2020), Appendix A.6 and A.7.

    With ImageNet's labels a rate of 0.03 from pre-trained weights and 0.1 from random ones; A.7
    does not give the epochs, A.6 divides by ten at 70 % and 90 % of 100.
    """

    protocol: ClassVar[str] = "finetune"
    frozen: ClassVar[bool] = False
    paper_milestones: ClassVar[tuple[int, ...]] = (70, 90)
    milestones: list[int] | None = _milestones(70, 90)
    lr: float = option(0.03, "learning rate", low=0)
    weight_decay: float = option(1e-4, "of SGD", low=0)
    head_lr: float | None = option(
        None, "rate of the linear layer (default: --lr)", type=float, low=0
    )

    def rates(self) -> tuple[float, float]:
        return self.lr, self.lr if self.head_lr is None else self.head_lr


Options = KnnOptions | LinearOptions | LbfgsOptions
# command -> its line in --help, and its options
PROTOCOLS: dict[str, tuple[str, type[Options]]] = {
    "knn": ("a vote of the nearest training images", KnnOptions),
    "linear": ("a linear classifier on the frozen trunk, by SGD", LinearOptions),
    "linear-lbfgs": ("a linear classifier on cached features", LbfgsOptions),
    "finetune": ("the whole network trained on the labels", FinetuneOptions),
}


def read_options(given: Mapping[str, Any]) -> tuple[Options, Conditions]:
    """Those of a command line's words by name; InputError for a number out of its bounds."""
    kind = PROTOCOLS[given["command"]][1]
    size = 224 if given["size"] is None else given["size"]
    how = Conditions(size, given["batch"], given["seed"], given["precision"] == "bfloat16")
    return kind(**{one.name: given[one.name] for one in fields(kind)}), how
