"""What the speedrun's benchmark says of a run's records."""

from __future__ import annotations

from typing import Any

from benchmarks.speedrun import Trial, read_trial, summary


def trial(accuracies: list[float], goal: float = 45.0) -> Trial:
    """Of a run that is measured every two steps of ten images, at 10 images/s and then 20."""
    records: list[dict[str, Any]] = [{"iteration": 0, "epoch": 0.0, "knn_accuracy": 60.0}]
    for number, accuracy in enumerate(accuracies, 1):
        step = {"iteration": 2 * number, "epoch": float(number)}
        records.append({**step, "images_per_second": 10.0 if number == 1 else 20.0, "loss": 1.0})
        records.append({**step, "knn_accuracy": accuracy})
    return read_trial(records, batch=10, variant="", seed=0, goal=goal)


def test_the_seconds_are_those_of_the_steps_and_not_of_the_measurements() -> None:
    found = trial([30.0, 40.0, 46.0])
    assert found.curve == [(2, 2.0, 30.0), (4, 3.0, 40.0), (6, 4.0, 46.0)]
    assert (found.iterations, found.epochs, found.seconds, found.reached) == (6, 3.0, 4.0, True)
    assert found.images_per_second == 15.0
    assert not trial([30.0]).reached  # random weights that reach the goal do not count


def test_trials_that_miss_the_goal_are_counted_and_not_timed() -> None:
    trials = [trial([46.0]), trial([30.0, 30.0, 48.0]), trial([20.0])]
    assert summary(trials) == "38.0 % at the end; 2 of 3 trials reached 45 % in 3.0 ± 1.4 s"
    assert summary(trials[2:]) == "20.0 % at the end; 0 of 1 trials reached 45 %"
    assert summary([trial([30.0], goal=0.0)]) == "30.0 % at the end"
