"""The main example: DINOv2 ViT-S/14 on handwritten digits, 432 coefficients beside the linear probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coeff_tuning.errors import RunError
from coeff_tuning.recipes import run_folder
from coeff_tuning.recipes.compare import compare
from coeff_tuning.recipes.configuration import parse_run
from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.report import loading_lines, saved_files

# The same as examples/configs/digits-dinov2.yaml. Chosen on training images that were not trained on.
DEMO: dict[str, Any] = {
    "task": "image-classification",
    "model_name_or_path": "dinov2-small",
    "dataset": "digits",
    "image_size": 70,
    "train_samples_per_class": 16,
    "num_train_epochs": 24,
    "per_device_train_batch_size": 16,
    "head_start": "random",
    "learning_rate": "1e-2",
    "lora_learning_rate": "1e-3",
    "coeff_learning_rate": "5e-2",
    "coeff_dropout": 0.2,
}


def demo(output_dir: str, seed: int) -> None:
    """Run the linear probe and the coefficients, then say what came out.

    Args:
        output_dir: holds both runs.
        seed: draws the training images.

    Raises:
        RunError: the folder cannot be written, or was made with other settings.
    """
    root = Path(output_dir)
    config = root / "demo.yaml"
    with run_folder.writing(root):
        root.mkdir(parents=True, exist_ok=True)
        config.write_text(require("yaml").safe_dump(DEMO, sort_keys=False), encoding="utf-8")
    compare(str(config), ["linear", "coeff"], [seed], output_dir, [])
    folder = root / f"coeff-seed{seed}"
    probe = run_folder.read_metrics(root / f"linear-seed{seed}")
    tuned = run_folder.read_metrics(folder)
    if tuned["extra_parameters"] != 12 * 6 * 6:
        raise RunError(f"12 layers of 6 heads have 432 coefficients; the run has {tuned['extra_parameters']}")
    task = str(DEMO["task"])
    run = parse_run([task, "--config", str(folder / run_folder.CONFIG_FILE), "--output_dir", str(folder)])
    gain = 100 * (tuned["accuracy"] - probe["accuracy"])
    print(
        f"""
DINOv2 ViT-S/14, {tuned["train_samples"]} handwritten digits to train on, {tuned["heldout_samples"]} held out
  linear probe   accuracy {probe["accuracy"]:.4f}   head {probe["head_parameters"]:,} numbers
  coefficients   accuracy {tuned["accuracy"]:.4f}   head {tuned["head_parameters"]:,} numbers + {
            tuned["extra_parameters"]
        } coefficients ({gain:+.1f} points)
everything is in {root}; the adapter is in {folder}:
  {", ".join(saved_files(folder))}

load it in Python:

{loading_lines(run, tuned)}"""
    )
