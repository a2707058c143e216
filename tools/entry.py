"""How every tool begins and ends: one form of help; bad input is one line and exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from moco_det import __version__
from moco_det.foundation import stopping
from moco_det.foundation.commands import command
from moco_det.foundation.errors import InputError, ProcessDied, one_line
from moco_det.foundation.exhausted import as_input_error

# What newer torch remarks on and the oldest one allowed here does not know otherwise: torch.jit in
# fvcore's losses, DDP's broadcast_buffers, the all_reduce that gradients pass through. And what a
# process says once of the two layouts that a 1x1 kernel's gradient can have, which are the same.
REMARKS: tuple[tuple[str, type[Warning]], ...] = (
    ("`torch.jit", FutureWarning),
    ("`broadcast_buffers`", FutureWarning),
    ("torch.distributed.nn.functional", FutureWarning),
    ("Grad strides do not match bucket view strides", UserWarning),
)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Appends an option's default where its help does not say it in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        none = action.default is None or action.default is False or action.default == []
        said = none or "default" in (action.help or "")
        return action.help if said else super()._get_help_string(action)


class ToolParser(argparse.ArgumentParser):
    """A parser whose refusals end as those of all bad input do."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError in place of argparse's own exit."""
        raise InputError(f"{message}; {self.prog} --help says more")


def make_parser(
    tool: str, description: str | None, *, example: str = "", allow_abbrev: bool = True
) -> argparse.ArgumentParser:
    """The parser of a tool, to be given its options; `example` is what follows its name."""
    parser = ToolParser(
        prog=command(tool),
        description=description,
        epilog=f"example:\n  %(prog)s {example}" if example else None,
        formatter_class=HelpFormatter,
        allow_abbrev=allow_abbrev,
    )
    version = f"moco-det {__version__}"
    parser.add_argument(
        "-V", "--version", action="version", version=version, help="show the version and exit"
    )
    return parser


def at_least(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """The `type` of an option that is a whole number between two others, both allowed."""

    def read(text: str) -> int:
        value = int(text)
        if least <= value <= most:
            return value
        side = f"below {least}" if value < least else f"above {most}"
        raise argparse.ArgumentTypeError(f"{value} is {side}")

    read.__name__ = "whole number"  # argparse: invalid ... value
    return read


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The option --engine, alike in all tools that have it."""
    from moco_det.settings.engine import ENGINES

    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="auto takes detectron2 where it can be imported, else standalone",
    )


def add_classes_and_keys(parser: argparse.ArgumentParser) -> None:
    """The options --classes and --opts of the tools that open a trained detector."""
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="the classes' names (default: those of the run's data set)",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys over the file's (default: none)",
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
    """Call a tool's main; an InputError is exit code 2, a signal 128 and its number."""
    leave_out_torchs_remarks()
    try:
        with stopping.raised():
            code = main()
            sys.stdout.flush()  # a full disk is told here, not after the end
            return code
    except (InputError, ProcessDied) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except stopping.Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (`... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if (known := as_input_error(error)) is None:
            raise
        print(f"error: {one_line(known)}", file=sys.stderr)
        with contextlib.suppress(OSError):  # what stdout still holds would fail once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
