"""Precise BN: statistics of the batches as they are now, and nothing else moved."""

from __future__ import annotations

import copy

import pytest
import torch
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn

from moco_det.foundation.precision import Precision
from moco_det.standalone.build import build_detector
from moco_det.standalone.mapper import Sample
from moco_det.standalone.precise_bn import update_statistics
from tests.golden.filling import images
from tests.standalone.targets import targets_of
from tests.standalone.tiny import tiny_config

FLOAT = Precision("float32", "cpu")


class Model(nn.Module):
    """Norms over images, called as a detector is."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()

    def forward(self, images: list[Tensor], targets: list[None]) -> Tensor:
        torch.rand(1)  # as the sampling of anchors draws
        return self.frozen(self.norm(torch.stack(images)))


def batches(count: int) -> list[list[Sample]]:
    random = torch.Generator().manual_seed(0)
    return [
        [Sample(5 + 2 * torch.randn(3, 4, 4, generator=random), 4, 4, 0) for _ in range(2)]
        for _ in range(count)
    ]


def test_statistics_are_those_of_the_batches_whatever_they_were() -> None:
    model = Model().train()
    model.frozen.eval()
    model.norm.running_mean.fill_(-50)  # type: ignore[union-attr]
    given = batches(6)
    update_statistics(model, given, 4, FLOAT)
    pixels = [torch.stack([s.image for s in b]).transpose(0, 1).flatten(1) for b in given[:4]]
    together = torch.cat(pixels, dim=1)
    assert model.norm.running_mean is not None and model.norm.running_var is not None
    torch.testing.assert_close(model.norm.running_mean, together.mean(dim=1))
    # the population of all batches; fvcore corrects each batch by n / (n - 1), here 32 / 31
    torch.testing.assert_close(
        model.norm.running_var, together.var(dim=1, unbiased=False), rtol=0.04, atol=0
    )
    assert model.frozen.running_mean is not None
    assert model.frozen.running_mean.abs().max() == 0


def test_a_bar_says_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    update_statistics(Model().train(), batches(3), 3, FLOAT)
    assert "precise BN: 100%" in capsys.readouterr().err


def test_the_random_state_and_the_weights_are_kept() -> None:
    model = Model().train()
    weight = model.norm.weight.clone()
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    update_statistics(model, batches(3), 3, FLOAT)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(model.norm.weight, weight) and model.training


@pytest.mark.parametrize("norm_in_head", [False, True])
def test_a_detector_has_the_statistics_of_its_whole_training_forward(norm_in_head: bool) -> None:
    torch.manual_seed(0)
    model = build_detector(tiny_config({"MODEL.ROI_MASK_HEAD.NORM": "BN" if norm_in_head else ""}))
    model.proposal_generator.register_forward_pre_hook(lambda *_: calls.append(1))
    calls: list[int] = []
    whole = copy.deepcopy(model).train()
    given = [
        [Sample(i, *i.shape[1:], 0, t) for i, t in zip(images(), targets_of(), strict=True)]
        for _ in range(2)
    ]
    update_statistics(model.train(), given, 2, FLOAT)
    assert len(calls) == (2 if norm_in_head else 1)
    for layer in get_bn_modules(whole):
        layer.momentum = None  # torch's spelling of the mean of all batches
        layer.reset_running_stats()
    with torch.no_grad():
        for batch in given:
            whole([s.image for s in batch], [s.targets for s in batch if s.targets])
    expected = dict(whole.named_buffers())
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            torch.testing.assert_close(buffer, expected[name], msg=name)


def test_a_model_without_trained_norms_is_left_alone() -> None:
    model = Model().eval()
    update_statistics(model, [], 5, FLOAT)  # no batch is asked for
    assert model.norm.running_mean is not None and model.norm.running_mean.abs().max() == 0
