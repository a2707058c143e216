"""How many processes on how many machines, where they meet, and their start."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from moco_det.foundation.errors import InputError, ProcessDied
from moco_det.foundation.memory import check_workers
from moco_det.foundation.ranks import run_ranks
from moco_det.foundation.stopping import Stopped

# One process scores, or writes a checkpoint, while the others wait for the next step.
TIMEOUT = timedelta(hours=2)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProcessLayout(NamedTuple):
    """How many processes on each of how many machines, this one's rank, and where they meet.

    Without a ``url`` they meet at a free port of this machine.
    """

    processes: int = 1
    machines: int = 1
    machine_rank: int = 0
    url: str | None = None


class TorchrunProcess(NamedTuple):
    """The place of a process that torchrun has started, in all and on its machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def torchrun_process() -> TorchrunProcess | None:
    """This process's place where torchrun, or what sets its variables, has started several.

    InputError where the variables are not those of such a process: alone it would train on its own
    where several were meant to.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    names = [name.upper() for name in TorchrunProcess._fields]
    given = {name: os.environ.get(name, "") for name in (*names, "MASTER_ADDR", "MASTER_PORT")}
    try:
        place = TorchrunProcess(*(int(given[name]) for name in names))
        meets = bool(given["MASTER_ADDR"]) and 0 < int(given["MASTER_PORT"]) < 2**16
    except ValueError:
        meets = False
    if (
        not meets
        or not 0 <= place.rank < place.world_size
        or not 0 <= place.local_rank < place.local_world_size <= place.world_size
    ):
        said = " ".join(f"{name}={value}" for name, value in given.items())
        raise InputError(
            f"torchrun starts no process with {said}: start several processes by torchrun, "
            "or unset WORLD_SIZE"
        )
    return place


@contextmanager
def torchrun_group(process: TorchrunProcess | None, device: str) -> Iterator[None]:
    """The process group of all that torchrun has started; nothing where ``process`` is None.

    ``device`` is cpu (gloo) or cuda (NCCL), where each process takes the GPU of its local rank.
    """
    if process is None:
        yield
        return
    if device == "cuda":
        check_gpus(process.local_world_size)
    place = (process.rank, process.world_size)
    with _process_group(device, process.local_rank, *place, init_method="env://"):
        yield


@contextmanager
def _process_group(
    device: str, local_rank: int, rank: int, world_size: int, **where: Any
) -> Iterator[None]:
    # Imported here so that --help does not wait for torch.
    import torch
    import torch.distributed as dist

    # DistributedDataParallel imports it, and its functions' defaults then keep the group alive.
    import torch.distributed.nn.functional

    if device == "cuda":
        torch.cuda.set_device(local_rank)
    backend = "nccl" if device == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=TIMEOUT, **where)
    except dist.DistNetworkError as error:
        raise InputError(
            f"the processes do not meet ({str(error).splitlines()[0]}): name a free port of the "
            "machine of rank 0 by --dist-url tcp://HOST:PORT (torchrun: --master-port PORT), or "
            "on one machine leave it out (torchrun: --standalone)"
        ) from None
    try:
        yield
    except Stopped as stop:  # as all have agreed
        traceback.clear_frames(stop.__traceback__)
        _destroy_process_group()
        raise
    except RuntimeError as error:
        # gloo has no exception of its own
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        said = str(error).splitlines()[0]
        raise ProcessDied(f"lost another process, whose output says why ({said})") from None
    # In a run that fails its end closes the connections: NCCL would wait here for the others.
    _destroy_process_group()


def _destroy_process_group() -> None:
    """Destroy the group, and with it gloo's threads, which live on where something refers to it.

    One that releases a tensor while the interpreter ends aborts it (pytorch/pytorch#190489).
    """
    import torch.distributed as dist

    gc.collect()  # parallel models refer to it, and may lie in cycles
    dist.destroy_process_group()


def check_gpus(processes: int) -> None:
    """InputError where this machine has fewer GPUs than processes."""
    import torch

    found = torch.cuda.device_count()
    if processes > found:
        raise InputError(
            f"{processes} processes on this machine and MODEL.DEVICE cuda, but it has {found} "
            "GPU(s): lower --num-gpus (torchrun: --nproc-per-node), or add MODEL.DEVICE cpu"
        )


def meeting_place(layout: ProcessLayout) -> ProcessLayout:
    """The layout, whose url is None where this machine is alone and none is given.

    InputError for counts and an address with which the processes would never meet.
    """
    processes, machines, machine_rank, url = layout
    if torchrun_process() is not None:
        if layout != ProcessLayout():
            raise InputError(
                "torchrun starts the processes and says where they meet: take out --num-gpus, "
                "--num-machines, --machine-rank and --dist-url, or start without torchrun"
            )
        return layout
    check_workers("--num-gpus", processes)
    if processes < 1 or not 0 <= machine_rank < machines:
        raise InputError("--num-gpus must be above 0 and --machine-rank below --num-machines")
    if url is None or url == "auto":
        if machines > 1:
            raise InputError(
                f"--num-machines {machines} needs --dist-url tcp://HOST:PORT, the same on every "
                "machine: a free port of the machine of rank 0"
            )
        return layout._replace(url=None)
    try:
        parts = urlsplit(url)
        named = parts.scheme == "tcp" and parts.hostname and parts.port
    except ValueError:
        named = None
    if not named and not url.startswith(("env://", "file://")):
        raise InputError(f"--dist-url {url} is no address: write it as tcp://HOST:PORT")
    return layout


def launch(
    function: Callable[..., None], arguments: tuple[Any, ...], layout: ProcessLayout, device: str
) -> None:
    """Run ``function(*arguments)`` in every process of the layout on this machine.

    NCCL on GPUs, gloo on CPUs. Under torchrun the processes exist already and are joined.
    """
    import torch.distributed as dist

    started = torchrun_process()
    if started is not None:
        with torchrun_group(started, device):
            function(*arguments)
        return
    if device == "cuda":
        check_gpus(layout.processes)
    if layout.processes * layout.machines == 1:
        function(*arguments)
        return
    store = None
    if layout.url is None:  # this process holds the port until all have ended
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store and store.port
    run_ranks(
        _process,
        (function, arguments, layout, device, port),
        processes=layout.processes,
        first=layout.machine_rank * layout.processes,
        total=layout.processes * layout.machines,
    )


def _process(
    local_rank: int,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    layout: ProcessLayout,
    device: str,
    port: int | None,
) -> None:
    import torch
    import torch.distributed as dist

    processes, machines, machine_rank, url = layout
    total = processes * machines
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // total))
    where: dict[str, Any] = {"init_method": url}
    if port is not None:
        where = {"store": dist.TCPStore("127.0.0.1", port, is_master=False)}
    rank = machine_rank * processes + local_rank
    with _process_group(device, local_rank, rank, total, **where):
        function(*arguments)
