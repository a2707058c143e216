"""A signal outside the loops ends a tool, whatever a library makes of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from moco_det.foundation.stopping import SIGNALS
from moco_det_tools import entry


def tool(number: int, error: type[BaseException] | None) -> Callable[[], int]:
    """A main that is told to stop, and turns what that raises into an `error`."""

    def main() -> int:
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            if error is None:
                raise
            raise error("of the library") from None
        return 0

    return main


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("error", [None, ValueError, OSError])
def test_a_signal_is_its_exit_code_also_where_a_library_swallows_it(
    number: int, error: type[BaseException] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    assert entry.run(tool(number, error)) == 128 + number
    assert [signal.getsignal(one) for one in SIGNALS] == before
    said = capsys.readouterr()
    assert said.err.startswith("stopped by ") and said.err.count("\n") == 1


def test_an_error_without_a_signal_keeps_its_traceback() -> None:
    def main() -> int:
        raise ValueError("a fault of the program")

    with pytest.raises(ValueError, match="a fault of the program"):
        entry.run(main)
