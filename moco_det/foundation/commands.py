"""Commands of this project as the user types them, for messages and help."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path


def command(tool: str, *arguments: str | Path) -> str:
    """ "moco-det convert-weights"; "python tools/convert_weights.py" where such a script was run.

    With arguments, a line that can be pasted into a shell.

    A wheel has no tools/ and a checkout may have no `moco-det` on the PATH, so a message names a
    command the way this process was started.
    """
    script = Path(sys.argv[0] or "moco-det")
    other = script.with_name(f"{tool.replace('-', '_')}.py")
    is_tool = script.suffix == ".py" and script.resolve().parent.name == "tools"
    words = ["python", other] if is_tool and other.is_file() else ["moco-det", tool]
    return shlex.join(map(str, [*words, *arguments]))


def duration(text: str) -> float:
    """Seconds of "90s", "12m" or "3h"."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smh])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: write 90s, 12m or 3h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
