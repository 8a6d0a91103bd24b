"""One run: data and model, method, training, held-out score, run folder."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from coeff_tuning.recipes import distributed, environment, plots, probe, run_folder
from coeff_tuning.recipes.configuration import Run
from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.methods import apply_method, save_trained
from coeff_tuning.recipes.tasks import Prepared, prepare

_LARGEST_PROBE = 5000  # samples that `--head_start auto` fits a probe to; it is fitted 70 times to choose its strength


def train(run: Run) -> dict[str, Any]:
    """Train, measure and save.

    Under torchrun or accelerate launch every process calls this. All of them check the run folder before the first
    one writes to it; nobody else does.

    Args:
        run: what to do.

    Returns:
        What `metrics.json` in the run folder holds, in the first process. The score is that of the last epoch on the
        held-out split; time is that of the first process, memory that of the process that used most.
    """
    from transformers import set_seed

    require("accelerate")
    arguments = run.training
    distributed.check_sharding(arguments, run.method.method)
    checkpoint = run_folder.start(
        run.folder, run.resolved, arguments.resume_from_checkpoint, overwrite=arguments.overwrite_output_dir
    )
    set_seed(arguments.seed)
    with arguments.main_process_first(desc="data and model"):  # the others then read what it cached
        prepared = prepare(run)
    if arguments.process_index == 0:
        run_folder.claim(run.folder, run.resolved, checkpoint)
    trainer, metrics, history = fit(run, prepared, checkpoint)
    _save(run, prepared, trainer, metrics, history)
    return metrics


def fit(
    run: Run, prepared: Prepared, checkpoint: str | None = None
) -> tuple[Any, dict[str, Any], list[dict[str, float]]]:
    """Train and measure; nothing is saved but the checkpoints that the run asks for.

    Args:
        run: what to do.
        prepared: its model and data, from `prepare` after `set_seed`.
        checkpoint: where training goes on, None to start at the beginning.

    Returns:
        The trainer, what `metrics.json` holds but the size of its files, and what `curves.png` shows.
    """
    head_parameters = prepared.loaded.head_parameters
    started = time.perf_counter()
    if run.method.method != "linear" and _starts_as_probe(run, prepared):
        _fit_probe(run, prepared)
    model = apply_method(run.task, prepared.loaded, run.method)
    trainer = _make_trainer(run, prepared, model)
    history = _fit(run, prepared, trainer, checkpoint)
    seconds = time.perf_counter() - started
    trained = head_parameters if run.method.method == "linear" else _trainable(model)
    metrics = {
        "task": run.task,
        "method": run.method.method,
        "model": run.model.model_name_or_path,
        "dataset": run.data.dataset or run.data.train_file,
        "seed": run.training.seed,
        **_measure(trainer),
        "heldout_split": prepared.splits.heldout_name,
        "heldout_samples": len(prepared.heldout),
        "train_samples": len(prepared.train),
        "labels": prepared.splits.labels,
        "trainable_parameters": trained,
        "head_parameters": head_parameters,
        "extra_parameters": trained - head_parameters,
        "train_seconds": round(seconds, 2),
        "resumed": checkpoint is not None,
        "processes": run.training.world_size,
        **environment.summary(),
    }
    metrics["peak_memory_mib"] = distributed.largest(trainer, metrics["peak_memory_mib"])
    return trainer, metrics, history


def _make_trainer(run: Run, prepared: Prepared, model: Any) -> Any:
    from coeff_tuning.recipes.trainer import CoeffTrainer

    run.training.label_names = ["labels"]
    trainer = CoeffTrainer(
        model=model,
        args=run.training,
        train_dataset=prepared.train,
        eval_dataset=prepared.heldout,
        data_collator=prepared.collator,
        compute_metrics=prepared.compute_metrics,
        preprocess_logits_for_metrics=prepared.reduce_logits,
        coeff_learning_rate=run.method.coeff_learning_rate,
        coeff_weight_decay=run.method.coeff_weight_decay,
        lora_learning_rate=run.method.lora_learning_rate,
    )
    if run.task != "causal-lm":
        # Many classifiers take the number of samples as a keyword and ignore it; `Trainer` would then multiply their
        # loss by the number of processes and of accumulated steps.
        trainer.model_accepts_loss_kwargs = False
    distributed.prepare_sharding(trainer)
    return trainer


def _fit(run: Run, prepared: Prepared, trainer: Any, checkpoint: str | None) -> list[dict[str, float]]:
    """Train; returns what `curves.png` shows: cross-validation scores of a linear probe, else the logged losses."""
    if run.method.method == "linear":
        return _fit_probe(run, prepared)
    with run_folder.writing(run.folder):
        trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.state.log_history  # type: ignore[no-any-return]


def _starts_as_probe(run: Run, prepared: Prepared) -> bool:
    """Whether the head starts as the converged probe; `auto` takes it where it is surely possible and cheap."""
    if run.method.head_start != "auto":
        return run.method.head_start == "probe"
    loaded = prepared.loaded
    return loaded.is_head_new and len(probe.linear_layers(loaded)) == 1 and len(prepared.train) <= _LARGEST_PROBE


def _fit_probe(run: Run, prepared: Prepared) -> list[dict[str, float]]:
    """Fit the head in the first process, for all."""
    history: list[dict[str, float]] = []
    loaded, size, seed = prepared.loaded, run.training.per_device_eval_batch_size, run.training.seed
    if run.training.process_index == 0:
        history = probe.fit_probe(loaded, prepared.train, prepared.collator, size, seed)
    distributed.send_from_first(run.training, [loaded.model.get_submodule(name) for name in loaded.head])
    return history


def _trainable(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _measure(trainer: Any) -> dict[str, float]:
    """Score on the held-out split after the last epoch."""
    measured = trainer.evaluate()
    if "eval_accuracy" in measured:
        return {"accuracy": measured["eval_accuracy"], "loss": measured["eval_loss"]}
    return {"perplexity": math.exp(min(measured["eval_loss"], 700)), "loss": measured["eval_loss"]}


def _save(run: Run, prepared: Prepared, trainer: Any, metrics: dict[str, Any], history: list[dict[str, float]]) -> None:
    state, layers = distributed.whole_state(trainer), plots.coefficients_of(trainer.model)  # by all processes
    if run.training.process_index == 0:
        with run_folder.replacing(run.folder) as folder:
            save_trained(trainer.model, prepared.loaded, run.method.method, folder, state)
            if run.method.method == "full":
                prepared.loaded.processor.save_pretrained(str(folder))
            metrics["adapter_bytes"] = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
            if run.method.method == "linear":
                plots.plot_probe(history, folder / "curves.png")
            else:
                plots.plot_curves(history, folder / "curves.png")
            if layers:
                plots.plot_coefficients(layers, folder / "coefficients.png")
            _write(folder / run_folder.CONFIG_FILE, require("yaml").safe_dump(run.resolved, sort_keys=False))
            _write(folder / run_folder.METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    trainer.accelerator.wait_for_everyone()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
