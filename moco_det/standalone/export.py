"""A detector as a program of torch.export, which runs with torch and torchvision alone.

Letters: R proposals, D detections, C foreground classes.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.nn import functional as F
from torchvision.ops import nms

from moco_det.foundation.errors import InputError
from moco_det.standalone.boxes import nonempty
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.fixed_size import SYNCHRONOUS
from moco_det.standalone.roi_layers import ImageDetections, rois_of

NAMES = ("boxes", "scores", "classes", "masks")
# How far the program may be from the detector: pixels of its input, probabilities.
TOLERANCES = {"boxes": 0.05, "scores": 1e-3, "classes": 0.0, "masks": 1e-2}
METADATA = "moco_det.json"


class OneImage(nn.Module):
    """Inference on one image, in operators whose sizes torch.export can follow.

    An image (3, H, W) as `GeneralizedRCNN` takes it to boxes (D, 4), scores (D,), classes (D,) and,
    where the detector has them, masks (D, S, S), as `ImageDetections` has them.
    """

    def __init__(self, detector: GeneralizedRCNN) -> None:
        super().__init__()
        self.detector = detector.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        detector, (height, width) = self.detector, image.shape[1:]
        step = detector.backbone.size_divisibility
        right, below = (-(-side // step) * step - side for side in (width, height))
        pixels = (image - detector.pixel_mean) / detector.pixel_std
        features = detector.backbone(F.pad(pixels, (0, right, 0, below))[None])
        boxes = self.propose(features, height, width)
        heads = detector.roi_heads
        maps = [features[name] for name in heads.in_features]
        scores, deltas = heads.predict(heads.pool(maps, padded_rois(boxes)))
        boxes, scores, classes = self.detect(boxes, scores[:-1], deltas[:-1], height, width)
        if heads.mask_head is None:
            return boxes, scores, classes
        rois = padded_rois(boxes)
        pooled = heads.mask_pooler(maps, rois) if heads.mask_pooler else heads.pool(maps, rois)
        masks = heads.mask_head.select(pooled, F.pad(classes, (0, 1))).sigmoid()
        return boxes, scores, classes, masks[:-1]

    def propose(self, features: dict[str, Tensor], height: int, width: int) -> Tensor:
        """The boxes (R, 4) of `RPN.propose`."""
        rpn = self.detector.proposal_generator
        maps = [features[name] for name in rpn.in_features]
        kept_boxes, kept_scores = [], []
        for level, (of_map, score, delta) in enumerate(zip(maps, *rpn.rpn_head(maps), strict=True)):
            anchors = rpn.anchors.grid(level, *of_map.shape[2:]).reshape(-1, 4)
            count = torch.sym_min(rpn.pre_nms_topk[1], score.shape[1])  # len() would fix it
            scores, index = score[0].topk(count)
            boxes = rpn.coder.decode(delta[0, index], anchors[index])
            finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
            boxes = clip_to(boxes, height, width)
            rows = (finite & nonempty(boxes, rpn.min_box_size)).nonzero()[:, 0]
            boxes, scores = boxes[rows], scores[rows]
            kept = any_nms(boxes, scores, rpn.nms_threshold)
            kept_boxes.append(boxes[kept])
            kept_scores.append(scores[kept])
        order = torch.cat(kept_scores).argsort(descending=True, stable=True)
        return torch.cat(kept_boxes)[order[: rpn.post_nms_topk[1]]]

    def detect(
        self, proposals: Tensor, scores: Tensor, deltas: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and classes of `BoxPredictor.detect`."""
        predictor = self.detector.roi_heads.box_predictor
        boxes = predictor.coder.decode(deltas, proposals)  # R, 4 or 4 C
        scores = scores.softmax(dim=1)
        sound = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
        scores = scores[:, :-1].masked_fill(~sound[:, None], -1.0)
        row, class_ = (scores > predictor.score_threshold).nonzero().unbind(dim=1)
        boxes = boxes.unflatten(1, (-1, 4))
        boxes = boxes[row, class_ if boxes.shape[1] > 1 else torch.zeros_like(class_)]
        boxes, scores = clip_to(boxes, height, width), scores[row, class_]
        apart = (class_ * (height + width))[:, None]  # boxes of two classes do not overlap
        kept = any_nms(boxes + apart, scores, predictor.nms_threshold)
        kept = kept[: predictor.detections_per_image]
        return boxes[kept], scores[kept], class_[kept]


def padded_rois(boxes: Tensor) -> Tensor:
    """Boxes (P, 4) of one image as rois (P + 1, 5): some operators are refused without a row."""
    return F.pad(rois_of(torch.zeros_like(boxes[:, 0]), boxes), (0, 0, 0, 1))


def clip_to(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (P, 4) moved inside the image, whose sides are symbols here."""
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    columns = [x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)]
    return torch.stack(columns, dim=1)


def any_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """NMS that may keep nothing: torchvision tells torch.export that at least two boxes stay."""
    two = boxes.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    last = scores.new_full((2,), -torch.inf)
    return nms(torch.cat([boxes, two]), torch.cat([scores, last]), threshold)[:-2]


def least_side(detector: GeneralizedRCNN) -> int:
    """The smallest side of an image: torch.export takes a map of one cell for a special case."""
    return max(detector.backbone.strides.values()) + 1


@torch.no_grad()
def export_program(
    detector: GeneralizedRCNN, image: Tensor, metadata: Mapping[str, Any]
) -> tuple[bytes, dict[str, float], int]:
    """The file's content, its largest differences from the detector, and how many detections.

    Compared are the detections in ``image`` and in a corner of it. InputError where they differ by
    more than TOLERANCES.
    """
    least = least_side(detector)
    height, width = image.shape[1:]
    if min(height, width) < least:
        raise InputError(
            f"an exported program of this detector takes images from {least} pixels a side, and "
            f"the config makes this one {width} x {height}: raise INPUT.MIN_SIZE_TEST"
        )
    content = io.BytesIO()
    sides = {k + 1: torch.export.Dim(name, min=least) for k, name in enumerate(("height", "width"))}
    one = OneImage(detector)
    with fixed_sizes(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's operators are described in deprecated words
        one(image)  # constants that are made once must not be made of the symbols below
        try:
            program = torch.export.export(one, (image,), dynamic_shapes=(sides,), strict=False)
        except UserError as error:
            reason = str(error).partition("!")[0]
            raise InputError(
                f"torch.export takes no images of any size to this backbone ({reason}): use the "
                "checkpoint itself, by moco-det predict"
            ) from error
        text = json.dumps(metadata, indent=1)
        torch.export.save(program, content, extra_files={METADATA: text})
    content.seek(0)
    run = torch.export.load(content).module()
    corner = image[:, : (height + least) // 2, : (width + least) // 2].contiguous()
    found = [difference(detector([x])[0], run(x)) for x in (image, corner)]
    largest = {name: max(one[name] for one in found) for name in found[0]}
    check_same(largest)
    return content.getvalue(), largest, len(run(image)[0])


def check_same(differences: Mapping[str, float]) -> None:
    """InputError where an output differs by more than its tolerance."""
    for name, value in differences.items():
        if not value <= TOLERANCES[name]:
            raise InputError(
                f"the exported program's {name} differ from the detector's by {value:.2g}, more "
                f"than {TOLERANCES[name]:g}: nothing is written; near ties of scores can do that, "
                "so try another --image"
            )


def difference(wanted: ImageDetections, found: tuple[Tensor, ...]) -> dict[str, float]:
    """The largest difference of each output, inf where there are more or fewer detections.

    Detections are compared with the nearest of their class, since equal scores have no order.
    """
    ours = [wanted.boxes, wanted.scores, wanted.classes]
    ours += [] if wanted.masks is None else [wanted.masks]
    if [one.shape for one in ours] != [one.shape for one in found]:
        return dict.fromkeys(NAMES[: len(ours)], torch.inf)
    if not len(wanted.boxes):
        return dict.fromkeys(NAMES[: len(ours)], 0.0)
    apart = (wanted.boxes[:, None] - found[0]).abs().amax(dim=2)
    apart = apart.masked_fill(wanted.classes[:, None] != found[2], torch.inf)
    nearest = apart.argmin(dim=1)
    pairs = zip(NAMES, ours, found, strict=False)
    return {name: float((one - other[nearest]).abs().max()) for name, one, other in pairs}


@contextmanager
def fixed_sizes() -> Iterator[None]:
    """Pooling by operators whose sizes do not depend on values, on the CPU too."""
    SYNCHRONOUS.discard("cpu")
    try:
        yield
    finally:
        SYNCHRONOUS.add("cpu")
