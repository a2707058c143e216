"""How many steps fit into the minutes that a comparison on one's own data may take."""

from __future__ import annotations

# Seconds per step of one process with every core busy, or three processes on a GPU: of MoCo with
# 128 views, and of a detector with 16 images. Measured on two cores with AMX; GPUs are estimated.
SECONDS = {"cpu": (0.19, 0.9), "cuda": (0.03, 0.12)}
# Shares of the time; the rest starts processes, cuts crops, scores and reports.
PRETRAIN, ALL = 0.3, 0.9
LEAST = (300, 50)


def steps_within(
    minutes: int, *, encoders: int, runs: int, at_once: int, device: str
) -> tuple[int, int]:
    """Steps of each encoder and of each run, to two digits, never fewer than LEAST.

    `encoders` are those trained without labels (a supervised one takes a quarter of their time),
    `at_once` the processes side by side.
    """
    shares = (PRETRAIN, ALL - PRETRAIN) if encoders else (0.0, ALL)
    steps = []
    for share, count, seconds, least in zip(
        shares, (encoders, runs), SECONDS[device], LEAST, strict=True
    ):
        rounds = max(1, -(-count // at_once))
        steps.append(max(least, int(float(f"{60 * minutes * share / rounds / seconds:.1e}"))))
    return steps[0], steps[1]
