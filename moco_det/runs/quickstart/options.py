"""What the options of quickstart mean together."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from moco_det.data.layouts import find_data
from moco_det.foundation.errors import InputError
from moco_det.runs.quickstart.data_sets import coco_data, own_data, painted_data, voc_data
from moco_det.runs.quickstart.encoders import shared_architecture
from moco_det.runs.quickstart.flow import at_once
from moco_det.runs.quickstart.minutes import steps_within
from moco_det.runs.quickstart.plan import (
    ARMS,
    MINUTES,
    PAINTED_STEPS,
    Budget,
    QuickstartPlan,
    recall,
)


def check_together(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything is written."""
    own, splits = args.data or args.voc or args.coco, args.train_split or args.test_split
    files, folders = len(args.coco or ()), len(args.images or ())
    without = not (own or args.pretrain)
    made = "needs encoders that are made for it: add --pretrain"
    its_options = "--pretrain, --pretrain-steps, --labels and --arms instdisc"
    made_here = args.pretrain or args.pretrain_steps or args.labels or "instdisc" in args.arms
    for found, message in (
        (files > 2, "--coco takes TRAIN.json and TEST.json, or one file, which is split"),
        (files != folders, "--coco TRAIN TEST goes with --images TRAIN TEST, one with one"),
        (splits and not args.voc, "--train-split and --test-split are for --voc"),
        (
            args.minutes and not own,
            "--minutes is for your own data: --finetune-steps shortens the painted demo",
        ),
        (args.labels and own, "--labels is for the painted scenes: leave out your own data"),
        (args.weights and made_here, f"--weights stands for pre-training: leave out {its_options}"),
        (args.labels and without, f"--labels (a supervised encoder for each number) {made}"),
        ("instdisc" in args.arms and without, f"--arms instdisc {made}"),
        (args.pretrain_steps and without, f"--pretrain-steps {made}"),
    ):
        if found:
            raise InputError(message)


def choose_budget(
    args: argparse.Namespace, weights: Mapping[str, Path], output: Path, *, device: str
) -> Budget:
    """The arms, and the steps that are asked for or fit into the minutes.

    A folder keeps the steps that its minutes once gave: arms and seeds may come to it.
    """
    learned = [] if weights else [arm for arm in ARMS if arm in args.arms and arm != "random"]
    arms = (*["random"] * ("random" in args.arms), *learned, *weights)
    minutes, steps = 0, PAINTED_STEPS
    if args.data or args.voc or args.coco:
        minutes, before = args.minutes or MINUTES, recall(output)
        steps = steps_within(
            minutes,
            encoders=sum(arm != "supervised" for arm in learned),
            runs=len(arms) * args.seeds,
            at_once=at_once(device),
            device=device,
        )
        if before.get("minutes") == minutes:
            steps = (before["pretrain_steps"], before["finetune_steps"])
    return Budget(
        arms=arms,
        seed=args.seed,
        seeds=args.seeds,
        pretrain_steps=args.pretrain_steps or steps[0],
        finetune_steps=args.finetune_steps or steps[1],
        minutes=minutes,
    )


def choose_data(
    args: argparse.Namespace, weights: Mapping[str, Path]
) -> Callable[[Path, Budget], QuickstartPlan]:
    """What prepares the data: painted scenes or one's own, for the ResNet of the `weights`."""
    architecture = shared_architecture(weights)
    find, source = partial(find_data, args.data), args.data
    if args.voc:
        find, source = partial(voc_data, args.voc, args.train_split, args.test_split), args.voc
    elif args.coco:
        find, source = partial(coco_data, args.coco, args.images), args.coco[0]
    elif not args.data:
        return partial(
            painted_data, labels=args.labels, pretrain=args.pretrain, architecture=architecture
        )
    return partial(
        own_data,
        source=str(source.resolve()),
        find=find,
        strict=args.strict,
        architecture=architecture,
    )
