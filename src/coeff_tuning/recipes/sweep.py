"""The rows of `compare` on Ray Tune: several at once, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import os
import shutil
import traceback
from collections.abc import Iterator
from functools import partial
from typing import Any

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.compare import Row, compare
from coeff_tuning.recipes.extras import require

_SCRATCH = ".ray"  # Tune's own files; results are in the run folders
_MAX_DEATHS = 3  # how often a row is begun again after its worker died


def sweep(
    config: str,
    methods: list[str],
    seeds: list[int],
    output_dir: str,
    flags: list[str],
    address: str | None = None,
    cpus_per_row: int = 1,
    gpus_per_row: float = 0,
) -> list[dict[str, Any]]:
    """`compare`, with the rows on Ray Tune.

    A row runs in a worker process of its own. If that dies, the row goes on at its last checkpoint in another one;
    finished rows are never run again, neither then nor when the same command is started again.

    Args:
        config: as for `compare`, and the same for the next four.
        methods: methods.
        seeds: seeds.
        output_dir: on a cluster, a folder that every machine sees under this name.
        flags: further flags for every run.
        address: of a Ray cluster. None: start Ray on this machine, and end it afterwards.
        cpus_per_row: processors, and threads, of a row.
        gpus_per_row: GPUs of a row; a part of one lets rows share it.

    Returns:
        One summary per method.
    """
    require("ray")
    run_rows = partial(_run_on_ray, address=address, resources={"cpu": cpus_per_row, "gpu": gpus_per_row})
    return compare(config, methods, seeds, output_dir, flags, run_rows)


def _run_on_ray(rows: list[Row], address: str | None, resources: dict[str, float]) -> None:
    from ray import tune

    scratch = rows[0].folder.parent.absolute() / _SCRATCH
    # Names of files mean the same in a worker as here.
    train = tune.with_parameters(_train_row, rows=rows, folder=os.getcwd())
    with _ray(address, resources):
        results = tune.Tuner(
            tune.with_resources(train, resources),
            param_space={"row": tune.grid_search(list(range(len(rows))))},
            run_config=tune.RunConfig(
                storage_path=str(scratch),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=_MAX_DEATHS),
                callbacks=[_progress(rows)],
            ),
        ).fit()
    errors = [(result.metrics or {}).get("error") or result.error for result in results]  # in the order of the rows
    require_all(rows, errors)
    shutil.rmtree(scratch, ignore_errors=True)


def require_all(rows: list[Row], errors: list[Any]) -> None:
    """Raise unless every row has its result.

    Args:
        rows: the rows.
        errors: what went wrong with each, or None.

    Raises:
        RunError: some have none; they are named, with what went wrong.
    """
    failed = [f"{row.folder.name}: {error}" for row, error in zip(rows, errors, strict=True) if not row.is_done]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(rows)} rows failed; {'; '.join(failed)}. Start the same command again to go on"
        )


def _train_row(config: dict[str, Any], rows: list[Row], folder: str) -> dict[str, Any]:
    """What a worker does; an error of the row itself is a result, so that only rows of dead workers are begun again."""
    from coeff_tuning.errors import CoeffTuningError
    from coeff_tuning.recipes.configuration import parse_run
    from coeff_tuning.recipes.train import train

    os.chdir(folder)
    row = rows[config["row"]]
    if row.is_done:  # the worker died between its result and its report
        return {}
    try:
        train(parse_run(row.argv))
    except CoeffTuningError as error:
        return {"error": str(error)}
    except Exception:
        return {"error": traceback.format_exc()}
    return {}


@contextlib.contextmanager
def _ray(address: str | None, resources: dict[str, float]) -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    local = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    try:
        ray.init(address or "local", log_to_driver=False, **(local if address is None else {}))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"Ray cannot be started or reached (--address {address or 'local'}): {error}") from error
    try:
        has = ray.cluster_resources()
        for name, needed in resources.items():
            if needed > has.get(name.upper(), 0):
                raise RunError(
                    f"a row needs {needed:g} {name}s and Ray has {has.get(name.upper(), 0):g}; lower --{name}s_per_row"
                )
        yield
    finally:
        ray.shutdown()


def _progress(rows: list[Row]) -> Any:
    """A Tune callback that says which rows are done."""
    from ray import tune

    class Progress(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            done = sum(row.is_done for row in rows)
            print(f"[{done}/{len(rows)}] {rows[trial.config['row']].folder.name}", flush=True)

    return Progress()
