"""A run, from a config to one row of results, on either engine."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from moco_det.data.check import overlap_warnings
from moco_det.foundation import collectives
from moco_det.foundation.atomic import write_text
from moco_det.foundation.checkpoints import noted_last
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import claimed
from moco_det.foundation.launching import ProcessLayout, launch, torchrun_process
from moco_det.foundation.metrics_file import import_wandb, wandb_writer
from moco_det.foundation.strict_yaml import flatten
from moco_det.results import append_row
from moco_det.runs.cost import cost_line, detector_cost, images_per_second
from moco_det.runs.engines import choose_engine, load_config, load_engine
from moco_det.runs.folder import (
    CONFIG,
    check_batch_stays,
    check_free,
    check_results,
    check_unchanged,
    written_row,
)
from moco_det.runs.memory import check_memory
from moco_det.runs.row import (
    RunRow,
    describe_data,
    describe_engine,
    describe_hardware,
    describe_init,
    now,
    relative,
)
from moco_det.settings.config import dump
from moco_det.settings.engine import FINAL, Engine, PreparedRun, RunOptions
from moco_det.settings.values import schedule_warnings
from moco_det.settings.zoo import find_config
from moco_det.weights.download import local_path

logger = logging.getLogger(__name__)


def train(
    config_file: str | Path,
    overrides: Sequence[str] = (),
    *,
    engine: str = "auto",
    resume: bool = False,
    init_name: str | None = None,
) -> dict[str, Any]:
    """Train a config, with KEY VALUE overrides, in this process; its metrics on the test set.

    The config is a yaml file or a name of `zoo.names()`. As `moco-det train-net` does it:
    everything is written into OUTPUT_DIR, the row of results too. Raises InputError for whatever is
    wrong, before anything is written.
    """
    name, file = choose_engine(engine).engine, find_config(str(config_file))
    options = RunOptions(file, resume=resume, init_name=init_name)
    return run(load_config(name, file, overrides), options, load_engine(name))


def evaluate(
    folder: str | Path, overrides: Sequence[str] = (), *, engine: str = "auto"
) -> dict[str, Any]:
    """The metrics of a run's last checkpoint on its test set; writes predictions.json there."""
    file = Path(folder) / CONFIG
    name = choose_engine(engine).engine
    cfg = load_config(name, file, [*overrides, "OUTPUT_DIR", str(folder)])
    return run(cfg, RunOptions(str(file), resume=True, eval_only=True), load_engine(name))


def launch_run(cfg: CfgNode, options: RunOptions, engine: str, layout: ProcessLayout) -> None:
    """`run` in as many processes as the command line or torchrun says."""
    started = torchrun_process()
    local = layout.processes if started is None else started.local_world_size
    total = layout.processes * layout.machines if started is None else started.world_size
    load_engine(engine).check_processes(cfg, total)
    local_path(cfg.MODEL.WEIGHTS)  # fetched once, before there are several processes
    device = cfg.MODEL.DEVICE.split(":")[0]
    launch(run_in_process, (cfg, options, engine, local), layout, device)


def run_in_process(cfg: CfgNode, options: RunOptions, name: str, local_world_size: int) -> None:
    """`run` as the entry of one of several processes, each of which logs on its own."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    engine = load_engine(name)
    if collectives.world_size() > 1:
        engine.join(local_world_size)
    run(cfg, options, engine)


def run(cfg: CfgNode, options: RunOptions, engine: Engine) -> dict[str, Any]:
    """Train as the config says and score the test set; returns the metrics, on the main process.

    In several processes every process calls this. Raises InputError for whatever is wrong with
    the data, the weights or the combination of them, before anything is written.
    """
    output = Path(cfg.OUTPUT_DIR)
    leader = collectives.is_main()
    if options.eval_only and not (options.resume or cfg.MODEL.WEIGHTS):
        raise InputError(
            "--eval-only would score a random detector: name its checkpoint in MODEL.WEIGHTS, "
            "or add --resume to take OUTPUT_DIR's last one"
        )
    check_free(
        output, resume=options.resume, eval_only=options.eval_only, weights=cfg.MODEL.WEIGHTS
    )
    results = options.results or output / "results.jsonl"
    if options.resume and not options.eval_only:
        done = leader and (output / FINAL).exists()
        known = collectives.from_main(_written(results, output, cfg, engine) if done else None)
        if known is not None:
            return dict(known)
    import_wandb(cfg.WANDB)
    check_memory(cfg, collectives.world_size())
    prepared = engine.prepare(cfg, options)
    warnings = [*prepared.train_set.skipped, *(f"test: {x}" for x in prepared.test_set.skipped)]
    warnings += overlap_warnings(prepared.train_set, prepared.test_set) + prepared.warnings
    if prepared.trained is not None:
        check_batch_stays(output, cfg, prepared.begun_by, collectives.world_size())
        if prepared.trained > prepared.iterations:
            raise InputError(
                f"--resume: {output} is trained for {prepared.trained} iterations and "
                f"SOLVER.MAX_ITER is {prepared.iterations}: give {prepared.trained} or more, or "
                "choose another OUTPUT_DIR"
            )
        warnings += check_unchanged(output, cfg)
    if not options.eval_only:
        warnings += schedule_warnings(prepared.cfg.SOLVER)
    if leader and options.results is not None:
        check_results(results)
    with claimed(output) if leader else nullcontext(), prepared.log_into(output):
        config = output / CONFIG
        # scoring alone leaves the config of the run there
        kept = options.eval_only and config.exists()
        text = config.read_text(encoding="utf-8") if kept else dump(cfg)
        if leader:
            logger.info("%s", _first_line(prepared, engine))
        prepared.begin()
        if leader:
            write_text(config, text)
            logger.info("%s", prepared.loaded.line())
            for line in warnings:
                logger.warning("%s", line)
        if options.eval_only:
            return prepared.evaluate()
        cost: dict[str, Any] = {}
        if leader:
            size = {"short": cfg.INPUT.MIN_SIZE_TEST, "longest": cfg.INPUT.MAX_SIZE_TEST}
            cost = detector_cost(prepared.model, **size)
            logger.info("%s", cost_line(**cost))
        started, clock = now(), time.monotonic()
        try:
            project = cfg.WANDB if leader else ""
            with wandb_writer(project, output, flatten(prepared.cfg)) as also:
                metrics = prepared.train(also)
        except KeyboardInterrupt:
            if leader:
                logger.info("%s", what_is_kept(output, cfg.SOLVER.CHECKPOINT_PERIOD))
            raise
        if leader:
            solver = prepared.cfg.SOLVER
            loaded = prepared.loaded
            cost["images_per_second"] = images_per_second(
                output / "metrics.jsonl", solver.IMS_PER_BATCH
            )
            row = RunRow(
                run=output.name,
                task="box+mask" if cfg.MODEL.MASK_ON else "box",
                dataset=describe_data(prepared.train_set, prepared.test_set),
                config_name=Path(options.config_file).stem,
                config=dump(cfg),
                init=describe_init(options.init_name, str(loaded.path or ""), loaded.backbone),
                engine=describe_engine(**engine.describe()),
                precision=prepared.precision,
                seed=prepared.cfg.SEED,
                iterations=solver.MAX_ITER,
                batch=solver.IMS_PER_BATCH,
                wall_seconds=round(prepared.trained_seconds + time.monotonic() - clock, 3),
                hardware=describe_hardware(cfg.MODEL.DEVICE),
                output_dir=relative(output, results.parent),
                command=options.command or shlex.join(sys.argv),
                started=started,
                warnings=warnings,
                metrics=metrics,
                cost=cost,
            )
            # another process may have ended this run before the folder was claimed
            if not (options.resume and _written(results, output, cfg, engine)):
                append_row(results, row.as_dict())
                logger.info("one row added to %s", results)
        return metrics


def _first_line(prepared: PreparedRun, engine: Engine) -> str:
    names = engine.describe()
    commit = f" ({names['commit'][:10]})" if "commit" in names else ""
    return (
        f"engine {names['name']} {names['version']}{commit}, torch {torch.__version__}, "
        f"{prepared.precision} on {prepared.cfg.MODEL.DEVICE}, {collectives.world_size()} "
        f"process(es), seed {prepared.cfg.SEED}"
    )


def _written(results: Path, output: Path, cfg: CfgNode, engine: Engine) -> dict[str, Any] | None:
    """The metrics in the row that this run has in the results file, which it says."""
    row = written_row(results, output, cfg, engine.describe()["name"])
    if row is None:
        return None
    logger.info("%s is finished: its row is line %d of %s", output, row.line, row.path)
    return dict(row.data["metrics"])


def what_is_kept(output: Path, period: int) -> str:
    """What --resume finds of a run that was stopped."""
    if (last := noted_last(output)) is not None:
        return f"--resume goes on from {last}"
    return f"no checkpoint yet (SOLVER.CHECKPOINT_PERIOD {period}): --resume starts from the start"
