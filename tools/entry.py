"""How every tool ends: bad input is one line and exit code 2, a bug keeps its traceback."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable

from moco_det.foundation.errors import InputError

# What newer torch remarks on and the oldest one allowed here does not know otherwise: torch.jit in
# fvcore's losses, DDP's broadcast_buffers, the all_reduce that gradients pass through. And what it
# says once a process of the two layouts that a 1x1 kernel's gradient can have, which are the same.
REMARKS: tuple[tuple[str, type[Warning]], ...] = (
    ("`torch.jit", FutureWarning),
    ("`broadcast_buffers`", FutureWarning),
    ("torch.distributed.nn.functional", FutureWarning),
    ("Grad strides do not match bucket view strides", UserWarning),
)


def leave_out_torchs_remarks() -> None:
    """Say nothing of what a user can do nothing about, here and in the processes started here."""
    for start, category in REMARKS:
        warnings.filterwarnings("ignore", message=re.escape(start), category=category)
    os.environ.setdefault(
        "PYTHONWARNINGS",
        ",".join(f"ignore:{start}:{category.__name__}" for start, category in REMARKS),
    )


def run(main: Callable[[], int]) -> int:
    """Call a tool's main and turn an InputError into exit code 2."""
    leave_out_torchs_remarks()
    try:
        return main()
    except InputError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output has gone (`... | head`); nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
