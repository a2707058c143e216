"""How every tool ends: bad input is one line and exit code 2, a bug keeps its traceback."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from moco_det.errors import InputError as DetectionInputError
from pretrain.errors import InputError as PretrainInputError


def run(main: Callable[[], int]) -> int:
    """Call a tool's main and turn the rooms' input errors into exit code 2."""
    # fvcore still compiles its losses with torch.jit, which newer torch remarks on at import
    warnings.filterwarnings("ignore", message=r".*torch\.jit", category=FutureWarning)
    try:
        return main()
    except (DetectionInputError, PretrainInputError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output has gone (`... | head`); nothing is left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
