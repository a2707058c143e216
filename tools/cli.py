"""`moco-det COMMAND ...`: the tools of this folder under one name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from moco_det import __version__
from moco_det_tools.entry import run

# command, of the module of that name -> its line in --help
COMMANDS = {
    "doctor": "say what is installed, whether it works together, and the cures",
    "quickstart": "the whole comparison on procedural scenes or on your own data",
    "make-shards": "copy images into WebDataset shards, or count what shards hold",
    "plan": "memory, steps and time of a pre-training run before it starts",
    "pretrain": "learn an encoder from images, write checkpoint.pth",
    "probe": "measure features: nearest neighbours, a linear classifier, fine-tuning",
    "convert-weights": "turn a checkpoint into a detector's backbone.pkl and prove it",
    "train-net": "fine-tune and evaluate a detector from a config",
    "benchmark": "run initialisations x settings x seeds and keep their report up to date",
    "study": "pre-train, probe and fine-tune what declared hypotheses need, and judge them",
    "results": "list, show and export the rows of results.jsonl",
    "check-matched": "prove that configs differ in their initialisation and in nothing else",
    "make-configs": "write the matrix of detection configs into a folder",
    "predict": "draw a trained detector's detections on images",
    "export": "write a trained detector as a file that needs torch and torchvision alone",
    "report": "make report.html, .md and .csv from results.jsonl",
}


def usage() -> str:
    """What `moco-det --help` prints."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {line}" for name, line in COMMANDS.items())
    return (
        "usage: moco-det [-h] [-V] COMMAND ...\n\n"
        "Does a pretrained ResNet transfer to detection better than supervised pre-training?\n\n"
        f"commands (moco-det COMMAND --help says more):\n{lines}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; 2 where the command is missing or unknown."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(usage(), file=sys.stderr)
        return 2
    name, *rest = arguments
    if name in ("-h", "--help", "-V", "--version"):
        print(usage() if name in ("-h", "--help") else f"moco-det {__version__}")
        return 0
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: unknown command {name!r}; choose from {known}", file=sys.stderr)
        return 2

    def start() -> int:
        # Imported only now: `moco-det --help` and `moco-det report` must not wait for torch.
        tool = importlib.import_module(f"moco_det_tools.{name.replace('-', '_')}")
        code: int = tool.main(rest)
        return code

    before = sys.argv
    # Messages and help take the command's name from here, and a run records its command from here.
    sys.argv = [f"moco-det {name}", *rest]
    try:
        return run(start)
    finally:
        sys.argv = before


if __name__ == "__main__":
    raise SystemExit(main())
