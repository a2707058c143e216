"""What the machine has of memory and cores, and the refusal of a config that needs more."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from moco_det.foundation.errors import InputError

Built = TypeVar("Built")

GIB = 2**30
# A container's limit, where there is one.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_of(device: str) -> int:
    """Bytes of a GPU ("cuda", "cuda:1"), or for "cpu" of the host as this process may use it."""
    if device.startswith("cuda"):
        import torch

        # a GPU that is not there is refused by who opens it
        with suppress(AssertionError, RuntimeError):
            return torch.cuda.get_device_properties(device).total_memory
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number
            host = min(host, int(Path(file).read_text()))
    return host


def on_meta(build: Callable[[], Built], keys: str) -> Built:
    """What `build` makes, without its memory and without drawing a random number.

    InputError, which names `keys`, where a size is beyond what a number can hold.
    """
    import torch

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build()
    except (RuntimeError, OverflowError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(f"no memory holds what {keys} say ({first[:80]}): lower them") from error


def check_fits(needs: Mapping[str, int], device: str) -> None:
    """InputError where what a config needs, in bytes by the keys that say it, is more than all."""
    total, has = sum(needs.values()), memory_of(device)
    if total > has:
        key = max(needs, key=lambda name: needs[name])
        raise InputError(
            f"{total / GIB:,.1f} GiB are needed and {device} has {has / GIB:,.1f} GiB; "
            f"{needs[key] / GIB:,.1f} GiB of it by {key}: lower that"
        )


def check_workers(key: str, workers: int) -> None:
    """InputError for more processes than a machine can use."""
    most = max(64, 32 * (os.cpu_count() or 1))
    if workers > most:
        raise InputError(f"{key} is {workers}: give {most} or fewer, one per core is usual")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory has run out; torch has no class for a host's."""
    said = ("can't allocate memory", "not enough memory", "Unable to allocate")
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(words in str(error) for words in said)
