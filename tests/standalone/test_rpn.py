"""The proposal network: its losses against a slow reference, its proposals by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from moco_det.standalone.anchors import AnchorGenerator
from moco_det.standalone.boxes import BoxCoder, Matcher
from moco_det.standalone.fixed_size import subsample
from moco_det.standalone.rpn import RPN, Proposals, RPNHead, add_ground_truth, nms_by_level
from moco_det.standalone.targets import GroundTruth, Targets
from tests.standalone.targets import proposals_of


def make_rpn(
    *,
    batch_size_per_image: int = 16,
    topk: tuple[int, int] = (100, 100),
    min_box_size: float = 0.0,
    beta: float = 0.0,
) -> RPN:
    return RPN(
        in_features=["p2", "p3"],
        head=RPNHead(in_channels=4, num_anchors=2),
        anchors=AnchorGenerator(
            sizes=[[8], [16]], aspect_ratios=[[0.5, 2]], strides=[4, 8], offset=0.0
        ),
        matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality=True),
        coder=BoxCoder((1.0, 1.0, 1.0, 1.0), beta),
        batch_size_per_image=batch_size_per_image,
        positive_fraction=0.5,
        pre_nms_topk=topk,
        post_nms_topk=topk,
        nms_threshold=0.7,
        min_box_size=min_box_size,
        loss_weight=2.0,
        box_loss_weight=3.0,
    )


def features() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "p2": torch.randn(2, 4, 8, 8, generator=random),
        "p3": torch.randn(2, 4, 4, 4, generator=random),
    }


TARGETS = [
    Targets(torch.tensor([[2.0, 2, 14, 12], [16, 4, 30, 28]]), torch.tensor([0, 1])),
    Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
]


def truth_of(*targets: Targets) -> GroundTruth:
    return GroundTruth.of(targets, torch.device("cpu"))


def slow_losses(
    rpn: RPN,
    anchors: Tensor,
    logits: Tensor,
    deltas: Tensor,
    targets: Sequence[Targets],
) -> tuple[float, float]:
    """The definitions, one anchor after another; the sample is the RPN's own, redrawn."""
    torch.manual_seed(11)
    objectness = localisation = 0.0
    for image, target in enumerate(targets):
        (matched,), labels = rpn.match(anchors, truth_of(target))
        (index,), (is_positive,), _ = subsample(labels, 16, 0.5, background=0)
        for i in index[is_positive].tolist():
            objectness += -math.log(1 / (1 + math.exp(-logits[image, i].item())))
            a, t = anchors[i].tolist(), target.boxes[matched[i]].tolist()
            w, h = a[2] - a[0], a[3] - a[1]
            goal = [
                ((t[0] + t[2]) / 2 - (a[0] + a[2]) / 2) / w,
                ((t[1] + t[3]) / 2 - (a[1] + a[3]) / 2) / h,
                math.log((t[2] - t[0]) / w),
                math.log((t[3] - t[1]) / h),
            ]
            for value, wanted in zip(deltas[image, i].tolist(), goal, strict=True):
                d = abs(value - wanted)
                beta = rpn.coder.smooth_l1_beta
                localisation += d if beta == 0 else (d * d / 2 / beta if d < beta else d - beta / 2)
        for i in index[~is_positive].tolist():
            objectness += -math.log(1 - 1 / (1 + math.exp(-logits[image, i].item())))
    count = rpn.batch_size_per_image * len(targets)
    return 2.0 * objectness / count, 2.0 * 3.0 * localisation / count


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_losses_equal_a_slow_reference(beta: float) -> None:
    torch.manual_seed(0)
    rpn = make_rpn(beta=beta)
    maps = list(features().values())
    torch.nn.init.normal_(rpn.rpn_head.anchor_deltas.weight, std=0.3)
    torch.nn.init.normal_(rpn.rpn_head.objectness_logits.weight, std=0.3)
    anchors = rpn.anchors(maps)
    logits, deltas = rpn.rpn_head(maps)
    torch.manual_seed(11)
    losses = rpn.losses(anchors, maps, truth_of(*TARGETS))
    objectness, localisation = slow_losses(
        rpn, torch.cat(anchors), torch.cat(logits, 1), torch.cat(deltas, 1), TARGETS
    )
    assert localisation > 0
    assert losses["loss_rpn_cls"].item() == pytest.approx(objectness, rel=1e-5)
    assert losses["loss_rpn_loc"].item() == pytest.approx(localisation, rel=1e-5)


def test_without_objects_only_objectness_is_lost_and_all_parameters_get_a_gradient() -> None:
    torch.manual_seed(0)
    rpn = make_rpn()
    _, losses = rpn(features(), [(32, 32)] * 2, truth_of(TARGETS[1], TARGETS[1]))
    assert losses["loss_rpn_loc"].item() == 0
    # logits near zero: 16 of 16 anchors lose log 2 each, and the loss weighs 2
    assert losses["loss_rpn_cls"].item() == pytest.approx(2 * math.log(2), abs=0.05)
    (losses["loss_rpn_loc"] + losses["loss_rpn_cls"]).backward()
    assert all(p.grad is not None for p in rpn.parameters())


def test_the_heads_rows_are_in_the_order_of_the_anchors() -> None:
    head = RPNHead(in_channels=1, num_anchors=2)
    with torch.no_grad():
        head.conv.weight.zero_()
        head.conv.weight[0, 0, 1, 1] = 1  # the feature itself
        head.objectness_logits.weight[:, 0, 0, 0] = torch.tensor([1.0, 10.0])
        head.anchor_deltas.weight[:, 0, 0, 0] = torch.arange(1.0, 9.0)
    feature = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])  # y, x
    (logits,), (deltas,) = head([feature])
    # cell by cell along x, the two anchors of a cell side by side
    assert logits.tolist() == [[1, 10, 2, 20, 3, 30, 4, 40]]
    assert deltas[0, 2].tolist() == [2, 4, 6, 8]  # cell 1, anchor 0: 2 * (1, 2, 3, 4)
    assert deltas[0, 7].tolist() == [20, 24, 28, 32]  # cell 3, anchor 1: 4 * (5, 6, 7, 8)


def test_a_few_anchors_have_the_outputs_and_gradients_of_the_whole_map() -> None:
    torch.manual_seed(0)
    head = RPNHead(in_channels=4, num_anchors=2)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    maps = [torch.randn(2, 4, h, w, requires_grad=True) for h, w in ((3, 5), (2, 1))]
    # 30 anchors of the first map and 4 of the second: corners, the middle, and one twice
    index = torch.tensor([[0, 28, 9, 15, 15, 30, 33], [1, 14, 29, 7, 33, 32, 8]])
    logits, deltas = (torch.cat(outputs, dim=1) for outputs in head(maps))
    rows = torch.arange(2)[:, None]
    whole = torch.cat([logits[rows, index][..., None], deltas[rows, index]], dim=2)  # 2, 7, 5
    score, delta = head.at(maps, index)
    found = torch.cat([score[..., None], delta], dim=2)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    weights, inputs = torch.randn(2, 7, 5), [*maps, *head.parameters()]
    expected = torch.autograd.grad((whole * weights).sum(), inputs)
    for one, two in zip(
        torch.autograd.grad((found * weights).sum(), inputs), expected, strict=True
    ):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def propose(rpn: RPN, boxes: list[list[list[float]]], scores: list[list[float]]) -> Proposals:
    """Proposals of one 20 x 30 image from anchors that need no correction."""
    anchors = [torch.tensor(level) for level in boxes]
    logits = [torch.tensor([level]) for level in scores]
    deltas = [torch.zeros(1, len(level), 4) for level in boxes]
    found = rpn.propose(anchors, logits, deltas, [(20, 30)])
    return Proposals(*(t[found.real] for t in (found.boxes, found.logits, found.real)))


A, B = [0.0, 0, 10, 10], [12.0, 0, 22, 10]


def test_duplicates_are_removed_within_a_level_only() -> None:
    shifted = [0.0, 0, 10, 9]  # overlaps A by 0.9
    found = propose(make_rpn().eval(), [[A, shifted, B], [A]], [[1.0, 3.0, 2.0], [0.0]])
    assert found.boxes.tolist() == [shifted, B, A]  # best first; the other level's A stays
    assert found.logits.tolist() == [3.0, 2.0, 0.0]


def test_proposals_are_clipped_and_what_is_left_empty_is_dropped() -> None:
    outside, over = [40.0, 0, 50, 10], [-5.0, -5, 40, 40]
    found = propose(make_rpn().eval(), [[outside, over], [B]], [[9.0, 1.0], [0.0]])
    assert found.boxes.tolist() == [[0, 0, 30, 20], B]


def test_small_proposals_are_dropped_where_asked() -> None:
    found = propose(make_rpn(min_box_size=5).eval(), [[A, [0, 0, 5, 10]], [B]], [[1, 2.0], [0]])
    assert found.boxes.tolist() == [A, B]


def test_the_best_of_each_level_are_kept_before_and_of_all_after() -> None:
    rpn = make_rpn(topk=(1, 2)).eval()
    rpn.post_nms_topk = (1, 3)
    boxes = [[A, B, [0.0, 12, 8, 20]], [A, B, [0.0, 12, 8, 20]]]
    scores = [[1.0, 3.0, 2.0], [6.0, 5.0, 4.0]]
    assert propose(rpn, boxes, scores).logits.tolist() == [6.0, 5.0, 3.0]  # 2 + 2, then 3
    rpn.train()
    assert propose(rpn, boxes, scores).logits.tolist() == [6.0]  # 1 + 1, then 1


def test_a_diverged_network_is_an_error_in_training_and_skipped_in_testing() -> None:
    rpn = make_rpn()
    scores = [[1.0, float("nan")], [0.0]]
    with pytest.raises(FloatingPointError, match="became Inf or NaN"):
        propose(rpn, [[A, B], [B]], scores)
    assert propose(rpn.eval(), [[A, B], [B]], scores).boxes.tolist() == [A, B]


def test_no_box_survives_where_none_can() -> None:
    found = propose(make_rpn().eval(), [[[40.0, 0, 50, 10]], [[-9.0, 0, -1, 5]]], [[1.0], [2.0]])
    assert found.boxes.shape == (0, 4) and found.logits.shape == (0,)


def test_ground_truth_joins_the_proposals_as_almost_certain() -> None:
    one = proposals_of([torch.tensor([A])], [torch.tensor([0.5])])
    both = add_ground_truth(one, truth_of(Targets(torch.tensor([B]), torch.tensor([2]))))
    assert both.boxes.tolist() == [[A, B]] and both.real.tolist() == [[True, True]]
    # log((1 - 1e-10) / 1e-10) = 10 log 10
    assert both.logits[0].tolist() == pytest.approx([0.5, 10 * math.log(10)], rel=1e-5)


@pytest.mark.parametrize("count", [1, 40, 1000])
def test_the_best_boxes_are_those_of_nms_over_all(count: int) -> None:
    random = torch.Generator().manual_seed(0)
    low = torch.rand(1500, 2, generator=random) * 60
    boxes = torch.cat([low, low + 8 + 16 * torch.rand(1500, 2, generator=random)], dim=1)
    scores = torch.randn(1500, generator=random)
    levels = torch.arange(1500) % 3
    expected = batched_nms(boxes, scores, levels, 0.5)
    assert 40 < len(expected) < 1000  # so that all is looked at, and then too few are kept
    found = nms_by_level(boxes, scores, levels, 0.5, count)
    assert found.tolist() == expected[:count].tolist()


def test_of_equal_scores_the_first_anchor_comes_first() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [9, 9, 12, 12], [20, 0, 24, 4], [0, 0, 4, 4]])
    scores = torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert nms_by_level(boxes, scores, torch.tensor([0, 1, 0, 0]), 0.5, 4).tolist() == [0, 1, 2]
