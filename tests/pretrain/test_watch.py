from __future__ import annotations

import pytest

from pretrain.watch import Watch, drift, queue_warnings


def record(iteration: int, loss: float, std: float) -> dict[str, float]:
    return {"iteration": iteration, "loss": loss, "feature_std": std}


def test_drift_warning_separates_the_run_that_collapsed_from_the_papers() -> None:
    assert drift(4096, 128, 0.99) == pytest.approx(0.32)
    assert queue_warnings(4096, 128, 0.99, images=10_000)
    assert not queue_warnings(1024, 128, 0.99, images=10_000)
    assert not queue_warnings(65536, 256, 0.999, images=1_281_167)
    assert "more than the 88 images" in queue_warnings(1024, 128, 0.99, images=88)[0]


def test_the_watch_speaks_once_of_collapse_and_of_a_climbing_loss() -> None:
    watch = Watch(6.93, after=100)
    assert watch.look(record(50, 1.0, 0.01)) is None
    assert watch.look(record(150, 5.0, 0.8)) is None
    assert "climbed from 5.00 back to 6.90" in str(watch.look(record(200, 6.9, 0.8)))
    assert watch.look(record(210, 6.9, 0.8)) is None
    assert "collapsed" in str(watch.look(record(220, 6.9, 0.05)))
    assert watch.look(record(230, 6.9, 0.05)) is None


def test_the_watch_speaks_once_of_features_worse_than_random_ones() -> None:
    watch = Watch(6.93, after=100)
    assert watch.look_at_knn(0, 30.0) is None
    assert watch.look_at_knn(50, 10.0) is None  # too early to say
    assert watch.look_at_knn(150, 29.0) is None  # within the scatter
    assert "is 20.0 % and was 30.0 %" in str(watch.look_at_knn(200, 20.0))
    assert watch.look_at_knn(250, 20.0) is None


def test_a_restored_watch_says_what_the_first_one_would_have_said() -> None:
    first, second = Watch(6.93, after=100), Watch(6.93, after=100)
    first.look_at_knn(0, 30.0)
    first.look(record(150, 5.0, 0.05))
    second.restore(first.state())
    assert second.look(record(160, 5.0, 0.05)) is None  # said already
    assert "climbed from 5.00" in str(second.look(record(200, 6.9, 0.8)))
    assert "worse than random" in str(second.look_at_knn(200, 20.0))
