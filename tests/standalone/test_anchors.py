"""Anchors against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from moco_det.standalone.anchors import AnchorGenerator, cell_anchors


def generator(offset: float = 0.0) -> AnchorGenerator:
    return AnchorGenerator(sizes=[[8]], aspect_ratios=[[0.25, 1, 4]], strides=[4, 8], offset=offset)


def test_a_cells_anchors_keep_the_area_and_have_the_ratio_height_to_width() -> None:
    # area 64: ratio 1/4 is 16 wide and 4 high, ratio 1 is 8 x 8, ratio 4 is 4 wide and 16 high
    expected = [[-8, -2, 8, 2], [-4, -4, 4, 4], [-2, -8, 2, 8]]
    # area 256 is twice as long on every side
    doubled = [[-16, -4, 16, 4], [-8, -8, 8, 8], [-4, -16, 4, 16]]
    torch.testing.assert_close(
        cell_anchors([8, 16], [0.25, 1, 4]), torch.tensor(expected + doubled, dtype=torch.float32)
    )


def test_anchors_run_over_x_then_y_and_all_anchors_of_a_cell_stand_together() -> None:
    fine, coarse = generator()([torch.zeros(1, 5, 2, 2), torch.zeros(1, 5, 1, 1)])
    assert fine.shape == (2 * 2 * 3, 4) and coarse.shape == (3, 4)
    # cells (x, y): (0, 0), (1, 0), (0, 1), (1, 1) of stride 4
    centres = (fine[:, :2] + fine[:, 2:]) / 2
    assert centres.tolist() == [[0, 0]] * 3 + [[4, 0]] * 3 + [[0, 4]] * 3 + [[4, 4]] * 3
    # the second cell's first anchor: 16 wide, 4 high, around (4, 0)
    assert fine[3].tolist() == [-4, -2, 12, 2]


def test_an_offset_of_a_half_centres_anchors_in_their_cells() -> None:
    fine, coarse = generator(offset=0.5)([torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)])
    assert fine[1].tolist() == [2 - 4, 2 - 4, 2 + 4, 2 + 4]  # stride 4
    assert coarse[1].tolist() == [4 - 4, 4 - 4, 4 + 4, 4 + 4]  # stride 8


def test_an_empty_feature_map_has_no_anchors() -> None:
    fine, _ = generator()([torch.zeros(1, 1, 0, 3), torch.zeros(1, 1, 1, 1)])
    assert fine.shape == (0, 4)


def test_one_list_of_sizes_serves_all_maps_and_a_wrong_number_is_refused() -> None:
    assert generator().per_cell == [3, 3]
    with pytest.raises(ValueError, match="3 lists of anchor sizes"):
        AnchorGenerator(sizes=[[8], [16], [32]], aspect_ratios=[[1]], strides=[4, 8], offset=0.0)
