"""A matrix as a job array: one task per run, on whatever the batch system gives."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError

# The task stays in the background: bash handles a signal during `wait`, which has to be called
# again for the task's own exit code. 138 is what SIGUSR1, the notice of the time limit, ends with;
# SIGTERM is a preemption, where the batch system requeues, or scancel, where nobody does.
_TASK = """\
{task} &
task=$!
trap 'asked=1; kill -USR1 $task || true' USR1
trap 'asked=1; kill -TERM $task || true' TERM
asked=1
while [ "$asked" ]; do asked=; wait $task && code=0 || code=$?; done
[ $code -ne 138 ] || scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
exit $code
"""


def task_command(given: Sequence[str], *, engine: str) -> list[str]:
    """A command line's words for a task of its job array, with the engine that is found here."""
    return [*given, "--no-slurm", "--at-once", "1", "--engine", engine]


def write_job_array(
    tasks: Sequence[str],
    output: Path,
    *,
    command: Sequence[str],
    gpus: int,
    directives: Sequence[str],
) -> Path:
    """Write OUTPUT/runs.txt and OUTPUT/array.sbatch; returns the script's path.

    `command` is the caller's own command line for a task: each calls it with --only, the task
    in its line and, where it asked for `gpus`, those that the batch system gave it. `directives`
    are further options of sbatch, "--time=08:00:00". The tasks append to one results.jsonl, and
    those that are finished already end at once.
    """
    if not tasks:
        raise InputError("every run is finished already: there is nothing to submit")
    for directive in directives:
        if not re.fullmatch(r"-[^\n]+", directive):
            raise InputError(f"--sbatch {directive!r}: write an option of sbatch, --time=08:00:00")
    numbers = ",".join(map(str, range(gpus)))
    given = f' --gpus "${{CUDA_VISIBLE_DEVICES:-{numbers}}}"' if gpus else ""
    # A machine with GPUs would make another config of a task without, and so another run.
    hidden = "" if gpus or "MODEL.DEVICE" in command else "CUDA_VISIBLE_DEVICES= "
    names, script = output / "runs.txt", output / "array.sbatch"
    lines = [
        "#!/bin/bash",
        "# Submit with sbatch; a task whose run is finished already ends at once.",
        f"#SBATCH --array=0-{len(tasks) - 1}",
        "#SBATCH --job-name=moco-det",
        f"#SBATCH --output={output.resolve()}/slurm-%A_%a.txt",
        *([f"#SBATCH --gpus-per-node={gpus}"] if gpus else []),
        "# Two minutes before its time is up a run saves and its task is requeued, to go on there.",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        *(f"#SBATCH {directive}" for directive in directives),
        "set -eu",
        f"cd {shlex.quote(str(Path.cwd()))}",
        f'run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(names.resolve()))})',
        _TASK.format(task=f'{hidden}{shlex.join(command)}{given} --no-report --only "$run"'),
    ]
    write_text(names, "".join(f"{task}\n" for task in tasks))
    write_text(script, "\n".join(lines))
    return script
