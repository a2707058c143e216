from __future__ import annotations

import pytest
import torch

from pretrain.encoders import ARCHITECTURES
from pretrain.watch import KnnGain, Watch, knn_gain
from tests.pretrain.small_methods import moco
from tests.pretrain.small_trunk import SmallTrunk


@pytest.fixture(autouse=True)
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "resnet18", SmallTrunk)


def watch_of(chance_loss: float = 6.93) -> Watch:
    return Watch(chance_loss, after=100, ways_out="more steps")


def record(iteration: int, loss: float, std: float) -> dict[str, float]:
    return {"iteration": iteration, "loss": loss, "feature_std": std}


def test_drift_warning_separates_the_run_that_collapsed_from_the_papers() -> None:
    def warnings(size: int, batch: int, momentum: float, images: int) -> list[str]:
        return moco(size=size, momentum=momentum).warnings(batch=batch, images=images)

    assert "4096/128 x 0.01 = 0.32 is above" in warnings(4096, 128, 0.99, images=10_000)[0]
    assert not warnings(1024, 128, 0.99, images=10_000)
    assert not warnings(65536, 256, 0.999, images=1_281_167)
    assert "more than the 88 images" in warnings(1024, 128, 0.99, images=88)[0]


def test_the_watch_speaks_once_of_collapse_and_of_a_climbing_loss() -> None:
    watch = watch_of()
    assert watch.look(record(50, 1.0, 0.01)) is None
    assert watch.look(record(150, 5.0, 0.8)) is None
    assert "climbed from 5.00 back to 6.90" in str(watch.look(record(200, 6.9, 0.8)))
    assert watch.look(record(210, 6.9, 0.8)) is None
    assert "collapsed" in str(watch.look(record(220, 6.9, 0.05)))
    assert watch.look(record(230, 6.9, 0.05)) is None


def test_the_watch_speaks_once_of_features_worse_than_random_ones() -> None:
    watch = watch_of()
    low = KnnGain(accuracy=20.0, random=30.0, margin=4.0)
    assert watch.look_at_knn(50, low, last=False) is None  # too early to say
    within = KnnGain(accuracy=27.0, random=30.0, margin=4.0)
    assert watch.look_at_knn(150, within, last=False) is None
    assert "is 20.0 % and was 30.0 %" in str(watch.look_at_knn(200, low, last=False))
    assert watch.look_at_knn(250, low, last=False) is None


@pytest.mark.parametrize("accuracy, better", [(20.0, False), (34.0, False), (34.1, True)])
def test_a_run_ends_better_than_random_only_beyond_chance(accuracy: float, better: bool) -> None:
    said = watch_of().look_at_knn(5, KnnGain(accuracy, random=30.0, margin=4.0), last=True)
    if better:
        assert said is None
    else:
        assert f"no better than its random weights: kNN {accuracy} % against 30.0 %" in str(said)
        assert str(said).endswith("try more steps")


def test_the_margin_counts_the_pictures_on_which_the_votes_disagree() -> None:
    """Of 50 pictures 8 turn right and 1 wrong: 14 % more, 2 * sqrt(9) / 50 = 12 % are chance."""
    random, now = torch.zeros(50, dtype=torch.bool), torch.zeros(50, dtype=torch.bool)
    random[:20] = now[:20] = True
    now[0], now[20:28] = False, True
    gain = knn_gain(random, now)
    assert gain.record() == {"knn_accuracy": 54.0, "knn_random": 40.0, "knn_margin": 12.0}
    assert gain.points == pytest.approx(14.0)
    assert knn_gain(random, random).margin == 0.0


def test_the_margin_holds_nineteen_in_twenty_of_equal_encoders() -> None:
    """Two votes of which either is right on a picture by chance: few pairs are beyond it."""
    rng = torch.Generator().manual_seed(0)
    beyond = 0
    for _ in range(2000):
        random, now = (torch.rand(200, generator=rng) < 0.35 for _ in range(2))
        gain = knn_gain(random, now)
        beyond += abs(gain.points) > gain.margin
    assert 0.03 < beyond / 2000 < 0.06  # two standard errors leave 4.6 %


def test_what_to_try_leaves_out_what_was_tried() -> None:
    usual = moco(size=65536, momentum=0.999, splits=8).ways_out(batch=128)
    assert usual == [
        "for a short run MOCO.M 0.97 and MOCO.K 512 (4 batches)",
        "ENCODER.BN_SPLITS 1",
    ]
    assert moco(size=512, momentum=0.97, splits=1).ways_out(batch=128) == []


def test_a_restored_watch_says_what_the_first_one_would_have_said() -> None:
    first, second = watch_of(), watch_of()
    first.look(record(150, 5.0, 0.05))
    second.restore(first.state())
    assert second.look(record(160, 5.0, 0.05)) is None  # said already
    assert "climbed from 5.00" in str(second.look(record(200, 6.9, 0.8)))
