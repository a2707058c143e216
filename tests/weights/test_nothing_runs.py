"""Files made to run something: nothing in them runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.weights.pickled_names import HOSTILE
from moco_det.weights.reading import read_checkpoint
from tests.weights.watch import nothing_runs


def test_the_watch_hears_what_runs(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), nothing_runs():
        os.system("true")
    with pytest.raises(AssertionError), nothing_runs():
        pickle.loads(b"cbuiltins\neval\n(S'1'\ntR.")
    with pytest.raises(AssertionError), nothing_runs():
        (tmp_path / "x").write_text("")


def call(module: str, name: str, *arguments: Any) -> bytes:
    """The instructions of one call, protocol 2, without the stop."""
    inner = pickle.dumps(arguments, protocol=2)[2:-1]
    return f"c{module}\n{name}\n".encode() + inner + b"R"


def programs(marker: Path) -> dict[str, bytes]:
    """Pickles that would write `marker` in the usual unpickler, spelled in many ways."""
    path = str(marker)
    shell = f"touch {path}"
    code = f"open({path!r}, 'w')"
    nested = pickle.dumps({"a": 1})[:-1] + b"cos\nsystem\n(S'" + shell.encode() + b"'\ntR."
    getattr_chain = (
        b"\x80\x02cbuiltins\ngetattr\n"
        + b"cbuiltins\n__import__\n(S'os'\ntR"
        + b"S'system'\n\x86R(S'"
        + shell.encode()
        + b"'\ntR."
    )

    class Extended:
        def __reduce_ex__(self, protocol: int) -> Any:
            return os.system, (shell,)

    class ByState:
        def __reduce__(self) -> Any:
            return eval, ("list",), None, iter([1]), iter([(1, 2)])

    quoted = b"S'" + shell.encode() + b"'\n"
    length = bytes([len(shell)])
    return {
        "inst": b"(" + quoted + b"ios\nsystem\n.",
        "obj": b"(cposix\nsystem\n" + quoted + b"o.",
        "list of arguments": b"csubprocess\nPopen\n(S'touch'\nS'" + path.encode() + b"'\nltR.",
        "names on the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c"
        + length
        + shell.encode()
        + b"\x85R.",
        "protocol 0": pickle.dumps({"model": ByState()}, protocol=0),
        "reduce_ex": pickle.dumps({"model": Extended()}),
        "items of a call": pickle.dumps(ByState()),
        "subprocess": b"\x80\x02" + call("subprocess", "check_call", ["touch", path]) + b".",
        "import and getattr": getattr_chain,
        "builtins of Python 2": b"\x80\x02" + call("__builtin__", "execfile", path) + b".",
        "a pickle in a pickle": b"\x80\x02" + call("pickle", "loads", nested) + b".",
        "_pickle": b"\x80\x02" + call("_pickle", "loads", nested) + b".",
        "torch.load": b"\x80\x02" + call("torch", "load", path) + b".",
        "torch.hub": b"\x80\x02" + call("torch.hub", "load", "x/y", "z") + b".",
        "numpy's runstring": b"\x80\x02"
        + call("numpy.testing._private.utils", "runstring", code, {})
        + b".",
        "runpy": b"\x80\x02" + call("runpy", "run_path", path) + b".",
        "marshal": b"\x80\x02" + call("marshal", "loads", b"c") + b".",
        "open for writing": b"\x80\x02" + call("io", "open", path, "w") + b".",
        "attrgetter": b"\x80\x02" + call("operator", "attrgetter", "system") + b".",
        "pip": b"\x80\x02" + call("pip", "main", ["install", "x"]) + b".",
        "a path": b"\x80\x02" + call("pathlib", "Path.touch", path) + b".",
        "a storage from bytes": b"\x80\x02"
        + call("torch.storage", "_load_from_bytes", nested)
        + b".",
        "copyreg": b"\x80\x02ccopyreg\n_reconstructor\nccollections\nCounter\n"
        b"cbuiltins\nobject\nN\x87R.",
        "build on a class": b"\x80\x02cbuiltins\nlist\n}(X\x01\x00\x00\x00aK\x01ub.",
        "extension": b"\x80\x02\x82\x01.",
    }


NAMES = sorted(programs(Path("x")))
HARMLESS = {"a path", "a storage from bytes", "copyreg", "build on a class", "extension"}


def as_file(folder: Path, program: bytes, container: str) -> Path:
    path = folder / {"pickle": "x.pkl", "zip": "x.pth", "legacy": "x.pth"}[container]
    if container == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", program)
            archive.writestr("x/byteorder", "little")
    elif container == "legacy":
        head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
        path.write_bytes(head + program + pickle.dumps([], 2))
    else:
        path.write_bytes(program)
    return path


@pytest.mark.parametrize("container", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_no_way_of_spelling_it_runs_a_program(tmp_path: Path, name: str, container: str) -> None:
    marker = tmp_path / "ran"
    path = as_file(tmp_path, programs(marker)[name], container)
    expected = "not opened|known format|without torch.save" if name in HARMLESS else "would run"
    with nothing_runs(), pytest.raises(InputError, match=expected):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "omegaconf.dictconfig.DictConfig",
        "argparse.Namespace",
        "pathlib.PosixPath",
        "functools.partial",
        "torch.optim.sgd.SGD",
        "torch.jit_helpers.Config",
        "profile_models.resnet.ResNet",
        "code.models.resnet.ResNet",
        "trace.models.Net",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "numpy._core.multiarray.scalar",
        "builtins.getattr",
        "torch.serialization._get_layout",
        "operator.itemgetter",
        "osgeo.thing",
    ],
)
def test_an_honest_name_is_not_called_hostile(name: str) -> None:
    assert HOSTILE.fullmatch(name) is None
