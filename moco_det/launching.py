"""How many processes on how many machines, and where they meet: checked before any is started."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from moco_det.errors import InputError


def meeting_place(*, processes: int, machines: int, machine_rank: int, url: str | None) -> str:
    """The address at which the processes meet: `url`, or one of this machine where it is alone.

    InputError for counts and an address with which they would never meet.
    """
    if processes < 1 or not 0 <= machine_rank < machines:
        raise InputError("--num-gpus must be above 0 and --machine-rank below --num-machines")
    if url is None or url == "auto":
        if machines > 1:
            raise InputError(
                f"--num-machines {machines} needs --dist-url tcp://HOST:PORT, the same on every "
                "machine: a free port of the machine of rank 0"
            )
        # detectron2's own choice: as many ports as users
        port = 2**15 + 2**14 + (os.getuid() if hasattr(os, "getuid") else 1) % 2**14
        return f"tcp://127.0.0.1:{port}"
    try:
        parts = urlsplit(url)
        named = parts.scheme == "tcp" and parts.hostname and parts.port
    except ValueError:
        named = None
    if not named and not url.startswith(("env://", "file://")):
        raise InputError(f"--dist-url {url} is no address: write it as tcp://HOST:PORT")
    return url
