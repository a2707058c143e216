"""What the processes of the distributed tests run; a started process imports it by name."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

import moco_det.standalone.evaluate as evaluation
import moco_det.standalone.train as training
from moco_det.data import Record, load_dataset
from moco_det.foundation import collectives, stopping
from moco_det.foundation.bn_statistics import average_over_processes
from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import Precision
from moco_det.resnet.layers import SyncBatchNorm2d
from moco_det.runs.run import run_in_process
from moco_det.settings.config import set_values
from moco_det.settings.engine import RunOptions
from moco_det.standalone.build import build_detector, build_mapper, build_solver
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.evaluate import predict
from moco_det.standalone.mapper import Mapper, Sample
from moco_det.standalone.precise_bn import update_statistics
from tests.golden.filling import fill, images
from tests.standalone.targets import targets_of
from tests.standalone.tiny import tiny_config

FLOAT = Precision("float32", "cpu")


def batch_of(rank: int) -> Tensor:
    """Another number of images in every process, away from zero and from each other."""
    random = torch.Generator().manual_seed(rank)
    return 3 + rank + torch.randn(2 + rank, 4, 5, 3, generator=random)


def norm_layer(layer: nn.BatchNorm2d) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, 1.5, 2.0]))
        layer.bias.copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    return layer.train()


def loss_of(output: Tensor, start: int) -> Tensor:
    """A sum over images in which every image counts differently."""
    weights = torch.arange(start, start + len(output), dtype=torch.float32) + 1
    return (weights[:, None, None, None] * output.square().sin()).sum()


class Normed(nn.Module):
    """A norm called as a detector is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.norm = layer

    def forward(self, images: list[Tensor], targets: list[None]) -> Tensor:
        return self.norm(torch.stack(images))


def exercise(folder: Path, cfg: CfgNode, options: RunOptions) -> None:
    """All that two processes must agree on, a run of theirs, and bad input that only they find."""
    agree(folder)
    found = {
        "steps": {norm: take_steps(norm) for norm in ("SyncBN", "BN")},
        "rows": {count: rows_of(cfg, count) for count in (5, 1)},
    }
    torch.save(found, folder / f"{collectives.rank()}_detector.pt")
    run_in_process(cfg, options, "standalone", 2)
    stop_in_evaluation(cfg, options)
    raise InputError("data set nowhere is not there: name another")


def stop_in_evaluation(cfg: CfgNode, options: RunOptions) -> None:
    """The run again; one process is told to stop while it predicts; and its continuation."""
    cfg = set_values(cfg, ["OUTPUT_DIR", f"{cfg.OUTPUT_DIR}_stopped"])
    read = evaluation.sample_or_error

    def told(mapper: Mapper, record: Record) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return read(mapper, record)

    if collectives.rank() == 1:
        evaluation.sample_or_error = told
    try:
        run_in_process(cfg, options, "standalone", 2)
    except stopping.Stopped as stop:
        assert stop.number == signal.SIGTERM
        evaluation.sample_or_error = read
        run_in_process(cfg, dataclasses.replace(options, resume=True), "standalone", 2)


def agree(folder: Path) -> None:
    """Everything that two processes must agree on, written to one file a rank."""
    rank = collectives.rank()
    found: dict[str, object] = {
        "gathered": collectives.gather_objects({"rank": rank}),
        "mean": collectives.mean(torch.tensor([float(rank), 1.0])).tolist(),
    }
    layer = norm_layer(SyncBatchNorm2d(4))
    x = batch_of(rank).requires_grad_()
    output = layer(x)
    loss_of(output, start=2 * rank).backward()
    assert isinstance(layer, SyncBatchNorm2d)
    found |= {
        "output": output.detach(),
        "x.grad": x.grad,
        "weight.grad": layer.weight.grad,
        "bias.grad": layer.bias.grad,
        "running_mean": layer.running_mean,
        "running_var": layer.running_var,
        "tracked": int(layer.num_batches_tracked or 0),
        "eval": layer.eval()(x).detach(),
    }
    constants = torch.linspace(100, 5000, 64)[:, None, None].expand(2, 64, 7, 5)
    found["constants"] = SyncBatchNorm2d(64)(constants).detach()

    plain = norm_layer(nn.BatchNorm2d(4))
    samples = [[Sample(image, 5, 3, 0) for image in batch_of(rank)]] * 2
    update_statistics(Normed(plain).train(), samples, 2, FLOAT)
    found |= {"precise_mean": plain.running_mean, "precise_var": plain.running_var}

    by_hand = nn.BatchNorm2d(1)
    assert by_hand.running_mean is not None and by_hand.running_var is not None
    by_hand.running_mean.fill_(2.0 * rank)
    by_hand.running_var.fill_(1.0 + rank)
    average_over_processes([by_hand])
    found["average"] = (by_hand.running_mean.item(), by_hand.running_var.item())
    by_hand.running_mean.fill_(2.0 * rank + 7)
    collectives.share_buffers(by_hand)
    found["shared"] = by_hand.running_mean.item()
    torch.save(found, folder / f"{rank}.pt")


def detector(norm: str) -> tuple[CfgNode, GeneralizedRCNN]:
    """The tiny detector with the same weights wherever it is built, and its config."""
    cfg = tiny_config({"MODEL.RESNETS.NORM": norm, "MODEL.FPN.NORM": norm})
    model = build_detector(cfg)
    fill(model)
    return cfg, model.double().train()  # in float32 the order of sums shows


def samples_of(rank: int, *, objects: bool) -> list[Sample]:
    """Two images for each process; with ``objects`` False those of the second one hold none."""
    pictures = images(((160, 128),) * 2, seed=rank)
    targets = targets_of() if objects or rank == 0 else targets_of(((), ()))
    return [
        Sample(image, 160, 128, 0, target) for image, target in zip(pictures, targets, strict=True)
    ]


def take_steps(norm: str) -> list[dict[str, Any]]:
    """Two steps, the second without objects in the second process: what each found and sent."""
    cfg, model = detector(norm)
    wrapped = collectives.parallel(model)
    optimizer = build_solver(cfg, model).optimizer
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    found = []
    for objects in (True, False):
        fill(model)
        samples = samples_of(collectives.rank(), objects=objects)
        torch.manual_seed(collectives.rank())
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            names, losses = training.step(cfg, wrapped, optimizer, scaler, samples, FLOAT)
        found.append(
            {
                "losses": dict(zip(names, losses.tolist(), strict=True)),
                "gradients": {
                    name: p.grad.clone()
                    for name, p in model.named_parameters()
                    if p.grad is not None
                },
                "buffers": {name: b.clone() for name, b in model.named_buffers()},
                "sent": {
                    event.key: event.count
                    for event in profile.key_averages()
                    if event.key.startswith("c10d::")
                },
            }
        )
    return found


def rows_of(cfg: CfgNode, count: int) -> list[dict[str, Any]]:
    """Predictions of ``count`` images, by all processes."""
    everything = load_dataset(cfg.DATASETS.TRAIN[0])
    some = dataclasses.replace(everything, records=everything.records[:count])
    return predict(detector("BN")[1], some, build_mapper(cfg, train=False), FLOAT)


def run_until_killed(cfg: CfgNode, options: RunOptions, number: int) -> None:
    """A run that the system kills in the middle of step ``number``, counted from 0."""
    real = training.step
    steps = itertools.count()

    def step(*arguments: Any) -> Any:
        if next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    training.step = step
    run_in_process(cfg, options, "standalone", 2)
