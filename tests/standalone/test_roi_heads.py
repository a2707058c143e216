"""Box and mask heads: levels, samples, losses against a slow reference, detections by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moco_det.standalone.boxes import BoxCoder, Matcher
from moco_det.standalone.roi_align import ROIPooler
from moco_det.standalone.roi_heads import RegionSampler, ROIHeads, mask_loss
from moco_det.standalone.roi_layers import BoxHead, BoxPredictor, MaskHead, Regions
from moco_det.standalone.rpn import Proposals
from moco_det.standalone.targets import GroundTruth, Targets
from tests.golden.filling import polygon_of
from tests.standalone.targets import mask_targets, proposals_of, rois_of_images

POOLER = ROIPooler(output_size=2, strides=[4, 8, 16, 32], sampling_ratio=0, aligned=True)


def square(side: float) -> list[float]:
    return [0.0, 0.0, side, side]


def test_a_box_goes_to_the_level_of_its_size() -> None:
    # FPN equation 1: floor(4 + log2(side / 224)), level 4 having stride 16
    sides = [1.0, 55.9, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 5000.0]
    expected = [0, 0, 0, 1, 1, 2, 2, 3, 3]
    boxes = torch.tensor([square(side) for side in sides])
    assert POOLER.assign_levels(boxes).tolist() == expected
    # only the area counts, and a box without area goes to the finest
    odd = torch.tensor([[0.0, 0, 448, 112], [5, 5, 5, 9]])
    assert POOLER.assign_levels(odd).tolist() == [2, 0]


def test_regions_are_pooled_from_their_level_and_image_in_their_order() -> None:
    levels = [
        torch.stack(
            [torch.full((3, 512 // s, 512 // s), v), torch.full((3, 512 // s, 512 // s), v + 10)]
        )
        for s, v in zip(POOLER.strides, [1.0, 2.0, 3.0, 4.0], strict=True)
    ]
    boxes = [torch.tensor([square(448), square(60)]), torch.tensor([square(120), square(230)])]
    pooled = POOLER(levels, rois_of_images(boxes))
    assert pooled.shape == (4, 3, 2, 2)
    expected = torch.tensor([4.0, 1, 12, 13])[:, None, None, None].expand_as(pooled)
    torch.testing.assert_close(pooled, expected, atol=0, rtol=1e-5)


def test_pooling_is_aligned_to_pixel_centres() -> None:
    ramp = torch.arange(8.0).repeat(8, 1)[None, None]  # the value at column x is x
    pooler = ROIPooler(output_size=2, strides=[1], sampling_ratio=0, aligned=True)
    # bins x 2..4 and 4..6 have centres 3 and 5, which lie at the columns 2.5 and 4.5
    pooled = pooler([ramp], torch.tensor([[0.0, 2, 2, 6, 6]]))
    torch.testing.assert_close(pooled[0, 0], torch.tensor([[2.5, 4.5], [2.5, 4.5]]))


def test_no_regions_are_pooled_to_none() -> None:
    levels = [torch.zeros(1, 3, 16, 16, requires_grad=True) for _ in POOLER.strides]
    assert POOLER(levels, torch.zeros(0, 5)).shape == (0, 3, 2, 2)


def make_predictor(*, agnostic: bool = False, beta: float = 0.0, limit: int = 100) -> BoxPredictor:
    return BoxPredictor(
        in_features=6,
        num_classes=3,
        class_agnostic=agnostic,
        coder=BoxCoder((10.0, 10.0, 5.0, 5.0), beta),
        box_loss_weight=2.0,
        score_threshold=0.3,
        nms_threshold=0.5,
        detections_per_image=limit,
    )


REGIONS = Regions(  # classes 2, 0 and background (3), and of another image background alone
    image=torch.tensor([0, 0, 0, 1]),
    boxes=torch.tensor([[0.0, 0, 10, 10], [4, 4, 20, 24], [1, 1, 5, 5], [2, 2, 8, 8]]),
    classes=torch.tensor([2, 0, 3, 3]),
    ground_truth=torch.tensor([[1.0, 0, 12, 9], [4, 6, 20, 30], [1, 0, 12, 9], [2, 2, 8, 8]]),
    matched=torch.tensor([0, 1, 0, 0]),
)


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_equal_a_slow_reference(agnostic: bool, beta: float) -> None:
    torch.manual_seed(0)
    scores, deltas = torch.randn(4, 4), torch.randn(4, 4 if agnostic else 12)
    losses = make_predictor(agnostic=agnostic, beta=beta).losses(scores, deltas, REGIONS)
    entropy = box = 0.0
    columns = REGIONS.boxes, REGIONS.classes, REGIONS.ground_truth
    for i, (b, c, t) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        entropy += math.log(sum(math.exp(s) for s in scores[i].tolist())) - scores[i, c].item()
        if c == 3:
            continue
        w, h = b[2] - b[0], b[3] - b[1]
        goal = [
            10 * ((t[0] + t[2]) / 2 - (b[0] + b[2]) / 2) / w,
            10 * ((t[1] + t[3]) / 2 - (b[1] + b[3]) / 2) / h,
            5 * math.log((t[2] - t[0]) / w),
            5 * math.log((t[3] - t[1]) / h),
        ]
        start = 0 if agnostic else 4 * c
        for value, wanted in zip(deltas[i, start : start + 4].tolist(), goal, strict=True):
            d = abs(value - wanted)
            box += d if beta == 0 else (d * d / 2 / beta if d < beta else d - beta / 2)
    # both are divided by all 4 regions, not by the 2 of the foreground
    assert losses["loss_cls"].item() == pytest.approx(entropy / 4, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(2.0 * box / 4, rel=1e-5)


def test_losses_of_no_regions_are_zero_and_keep_the_graph() -> None:
    predictor = make_predictor()
    scores, deltas = predictor(torch.zeros(0, 6))
    nothing = REGIONS.select(torch.zeros(4, dtype=torch.bool))
    losses = predictor.losses(scores, deltas, nothing)
    sum(losses.values(), torch.zeros(())).backward()
    assert {name: loss.item() for name, loss in losses.items()} == {
        "loss_cls": 0.0,
        "loss_box_reg": 0.0,
    }
    assert all(p.grad is not None for p in predictor.parameters())


def logits(*rows: list[float]) -> Tensor:
    """Logits whose softmax are these probabilities."""
    return torch.tensor(rows).log()


def test_detections_by_hand() -> None:
    boxes = torch.tensor([square(10), [0.0, 0, 10, 9], [20, 0, 35, 10], square(10)])
    scores = logits(
        [0.60, 0.35, 0.03, 0.02],  # class 0, and class 1 above the threshold of 0.3
        [0.50, 0.10, 0.10, 0.30],  # a duplicate of the first in class 0; background never counts
        [0.05, 0.05, 0.80, 0.10],
        [0.25, 0.25, 0.25, 0.25],  # nothing
    )
    (found,) = make_predictor().detect(
        scores[None], torch.zeros(1, 4, 12), proposals_of([boxes]), [(20, 30)]
    )
    assert found.classes.tolist() == [2, 0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.6, 0.35]))
    # clipped to a width of 30; class 1 keeps a box that class 0 has too
    torch.testing.assert_close(
        found.boxes, torch.tensor([[20.0, 0, 30, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    )


def test_every_class_moves_its_own_box_and_only_the_best_are_kept() -> None:
    scores = logits([0.45, 0.01, 0.53, 0.01])
    deltas = torch.zeros(1, 1, 12)
    deltas[0, 0, 8] = 10.0  # class 2: one width to the right
    given = scores[None], deltas, proposals_of([torch.tensor([square(10)])]), [(20, 30)]
    (found,) = make_predictor().detect(*given)
    assert found.boxes.tolist() == [[10, 0, 20, 10], [0, 0, 10, 10]]
    assert found.classes.tolist() == [2, 0]
    (one,) = make_predictor(limit=1).detect(*given)
    assert one.classes.tolist() == [2]


def test_numbers_that_are_none_are_skipped_and_images_stay_apart() -> None:
    scores = logits([0.9, 0.05, 0.03, 0.02], [0.9, 0.05, 0.03, 0.02])
    scores[0, 0] = float("nan")
    first, second = make_predictor(agnostic=True).detect(
        scores[:, None],
        torch.zeros(2, 1, 4),
        proposals_of([torch.tensor([square(10)]), torch.tensor([square(8)])]),
        [(20, 30), (20, 30)],
    )
    assert first.boxes.shape == (0, 4)
    assert second.boxes.tolist() == [square(8)]


def test_an_image_without_proposals_has_no_detections() -> None:
    (found,) = make_predictor().detect(
        torch.zeros(1, 0, 4), torch.zeros(1, 0, 12), proposals_of([torch.zeros(0, 4)]), [(20, 30)]
    )
    assert found.boxes.shape == (0, 4) and found.classes.shape == (0,)


def make_sampler(
    *, append: bool = True, count: int = 8, positive_fraction: float = 0.25
) -> RegionSampler:
    return RegionSampler(
        num_classes=3,
        matcher=Matcher([0.5], [0, 1], allow_low_quality=False),
        batch_size_per_image=count,
        positive_fraction=positive_fraction,
        append_ground_truth=append,
    )


def make_heads(*, masks: bool = True) -> ROIHeads:
    box_head = BoxHead(
        in_channels=4, resolution=2, num_conv=1, conv_dim=4, num_fc=1, fc_dim=6, norm=""
    )
    return ROIHeads(
        in_features=["p2"],
        sampler=make_sampler(),
        pooler=ROIPooler(output_size=2, strides=[4], sampling_ratio=0, aligned=True),
        box_head=box_head,
        box_predictor=make_predictor(),
        mask_pooler=ROIPooler(output_size=4, strides=[4], sampling_ratio=0, aligned=True)
        if masks
        else None,
        mask_head=MaskHead(in_channels=4, num_conv=1, conv_dim=4, norm="", num_masks=3)
        if masks
        else None,
    )


TRUTH = (4.0, 4.0, 24.0, 24.0)
TARGET = Targets(torch.tensor([TRUTH]), torch.tensor([1]), [[polygon_of(TRUTH)]])
NOTHING = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), [])
# overlaps with the truth (400 square pixels): 1.0, 18 * 20 / 400 = 0.9, 0.5 (in), 0.45 (out)
BOXES = torch.tensor([TRUTH, (4.0, 4, 24, 22), (4, 4, 24, 14), (4, 4, 24, 13), (0, 0, 3, 3)])
PROPOSALS, NONE = proposals_of([BOXES]), proposals_of([torch.zeros(0, 4)])


def truth_of(*targets: Targets) -> GroundTruth:
    return GroundTruth.of(targets, torch.device("cpu"))


def test_regions_are_classified_by_overlap() -> None:
    torch.manual_seed(0)
    regions = make_sampler(append=False, count=100, positive_fraction=1.0).draw(
        PROPOSALS, truth_of(TARGET)
    )
    found = {
        tuple(b): c for b, c in zip(regions.boxes.tolist(), regions.classes.tolist(), strict=True)
    }
    assert [found[tuple(b)] for b in BOXES.tolist()] == [1, 1, 1, 3, 3]
    assert (regions.ground_truth[regions.classes == 1] == torch.tensor(TRUTH)).all()


def test_at_most_a_quarter_is_foreground_and_the_truth_is_a_proposal() -> None:
    torch.manual_seed(0)
    regions = make_sampler().draw(PROPOSALS, truth_of(TARGET))
    # 8 regions, a quarter of them foreground: 2 of 4, and all there is of background: 2
    assert regions.classes.tolist() == [1, 1, 3, 3]
    assert make_sampler().draw(NONE, truth_of(TARGET)).boxes.tolist() == [list(TRUTH)]
    assert make_sampler(append=False).draw(NONE, truth_of(TARGET)).boxes.shape == (0, 4)


def test_without_objects_all_regions_are_background() -> None:
    regions = make_sampler().draw(PROPOSALS, truth_of(NOTHING))
    assert regions.classes.tolist() == [3] * 5 and regions.ground_truth.shape == (5, 4)


def test_the_mask_loss_is_the_mean_over_the_pixels_of_the_true_class() -> None:
    torch.manual_seed(0)
    heads = make_heads()
    feature = torch.randn(1, 4, 8, 8)
    regions = Regions(
        torch.tensor([0, 0]),
        torch.tensor([TRUTH, (0.0, 0, 3, 3)]),
        torch.tensor([1, 3]),
        torch.tensor([TRUTH, TRUTH]),
        torch.tensor([0, 0]),
    )
    rows, real = regions.foreground(3)
    objects = regions.select(rows)
    assert heads.mask_pooler is not None and heads.mask_head is not None
    pooled = heads.mask_pooler([feature], objects.rois)
    loss = mask_loss(heads.mask_head, pooled, objects, real, truth_of(TARGET))
    logits = heads.mask_head(pooled)[0, 1]  # class 1
    # In its box of 8 x 8 texels the polygon lacks the corner that is 5 of 20 pixels long: 2 texels.
    # By the COCO rule the texels (row 6, column 0), (7, 0) and (7, 1) are outside or on the edge.
    truth = mask_targets(TARGET.masks or [], regions.boxes[:1], 8)[0]
    assert 1 <= int((~truth).sum()) <= 3 and not truth[7, 0] and truth[:6].all()
    total = 0.0
    for logit, inside in zip(logits.flatten().tolist(), truth.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        total -= math.log(p if inside else 1 - p)
    assert loss.item() == pytest.approx(total / 64, rel=1e-5)


@pytest.mark.parametrize("proposals", [PROPOSALS, NONE])
def test_an_image_without_objects_trains_every_parameter(proposals: Proposals) -> None:
    torch.manual_seed(0)
    heads = make_heads()
    losses = heads.train_losses({"p2": torch.randn(1, 4, 8, 8)}, proposals, truth_of(NOTHING))
    assert losses["loss_mask"].item() == 0 and losses["loss_box_reg"].item() == 0
    total = sum(losses.values(), torch.zeros(()))
    total.backward()
    assert math.isfinite(total.item())
    assert [n for n, p in heads.named_parameters() if p.grad is None] == []


def test_masks_are_probabilities_of_the_detected_class() -> None:
    torch.manual_seed(0)
    heads = make_heads().eval()
    features = {"p2": torch.randn(2, 4, 8, 8)}
    assert heads.mask_head is not None
    with torch.no_grad():
        heads.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 3, 0, 0]))  # class 1 wins
        heads.mask_head.get_submodule("predictor").bias.copy_(torch.tensor([-50.0, 50, -50]))  # type: ignore[operator,union-attr]
        both = proposals_of([BOXES, torch.zeros(0, 4)])
        found, none = heads.detect(features, both, [(32, 32)] * 2)
    assert found.masks is not None and none.masks is not None
    assert len(found.boxes) > 0 and found.classes.tolist() == [1] * len(found.boxes)
    assert found.masks.shape == (len(found.boxes), 8, 8) and (found.masks > 0.999).all()
    assert none.masks.shape == (0, 8, 8)


@pytest.mark.parametrize("agnostic", [False, True])
def test_the_mask_of_a_class_is_that_of_the_whole_heads_output(agnostic: bool) -> None:
    torch.manual_seed(0)
    head = MaskHead(in_channels=3, num_conv=1, conv_dim=5, norm="", num_masks=1 if agnostic else 4)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 3, 4, 6, requires_grad=True)
    classes = torch.tensor([2, 0, 2])
    whole = head(x)[torch.arange(3), torch.zeros_like(classes) if agnostic else classes]
    found = head.select(x, classes)
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)
    weights, inputs = torch.randn(3, 8, 12), [x, *head.parameters()]
    expected = torch.autograd.grad((whole * weights).sum(), inputs)
    for one, two in zip(
        torch.autograd.grad((found * weights).sum(), inputs), expected, strict=True
    ):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-4)
    assert head.select(x[:0], classes[:0]).shape == (0, 8, 12)
