r"""Teach Stable Diffusion 1.5 or SDXL a subject from a few photographs: DreamBooth with coefficients, LoRA or both.

    python examples/customize/train.py --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 \
        --instance_data_dir dog --instance_prompt "a photo of sks dog" --method coeff+lora --output_dir runs/dog

The same command goes on with a run that was interrupted, and leaves a finished one alone.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import adapters
import images
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from peft import PeftModel
from training import DTYPES, Training, encode

from coeff_tuning.errors import CoeffTuningError, RunError
from coeff_tuning.recipes import environment, run_folder

NOT_SETTINGS = ("output_dir", "checkpointing_steps")  # do not change the result


def parse(argv: list[str] | None) -> argparse.Namespace:
    summary, example = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(description=summary, epilog=example, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--pretrained_model_name_or_path", required=True, help="pipeline of SD 1.5, 2 or XL: folder or hub id")
    add("--instance_data_dir", required=True, help="folder with the photographs")
    add("--instance_prompt", required=True, help="their prompt, with a rare word for the subject")
    add("--class_prompt", help="prompt of the class; turns prior preservation on")
    add("--class_data_dir", help="images of the class; what is missing is drawn with the base model")
    add("--num_class_images", type=int, default=100)
    add("--prior_loss_weight", type=float, default=1.0)
    add("--class_inference_steps", type=int, default=50)
    add("--method", choices=adapters.METHODS, default="coeff+lora")
    add("--lora_r", type=int, default=4)
    add("--coeff_dropout", type=float, default=0.2)
    add("--learning_rate", type=float, default=1e-4, help="of LoRA")
    add("--coeff_learning_rate", type=float, default=5e-3, help="of the coefficients")
    add("--max_train_steps", type=int, default=500)
    add("--train_batch_size", type=int, default=1)
    add("--gradient_accumulation_steps", type=int, default=4)
    add("--gradient_checkpointing", action="store_true", help="less memory, more time")
    add("--max_grad_norm", type=float, default=1.0)
    add("--resolution", type=int, default=1024, help="512 for SD 1.5")
    add("--mixed_precision", choices=DTYPES, default="no")
    add("--checkpointing_steps", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--output_dir", required=True)
    return parser.parse_args(argv)


def check(arguments: argparse.Namespace) -> None:
    """Raise on values that cannot work, before anything is loaded."""
    for name in ("instance_prompt", "class_prompt"):
        value = getattr(arguments, name)
        if value is not None and not value.strip():
            raise RunError(f"--{name} is empty; it must say what the images show, for example 'a photo of sks dog'")
    if (arguments.class_prompt is None) != (arguments.class_data_dir is None):
        missing = "class_prompt" if arguments.class_prompt is None else "class_data_dir"
        raise RunError(f"prior preservation needs --class_prompt and --class_data_dir; --{missing} is missing")
    at_least_1 = "num_class_images class_inference_steps lora_r max_train_steps train_batch_size "
    at_least_1 += "gradient_accumulation_steps checkpointing_steps"
    for name in at_least_1.split():
        if getattr(arguments, name) < 1:
            raise RunError(f"--{name} must be at least 1; got {getattr(arguments, name)}")
    if arguments.resolution < 8 or arguments.resolution % 8:
        raise RunError(f"--resolution must be a multiple of 8; got {arguments.resolution}")


def prepare(arguments: argparse.Namespace, accelerator: Accelerator) -> Training:
    """Read images, draw those of the class that are missing, encode all, attach what is trained."""
    paths = images.find(arguments.instance_data_dir)
    pictures = [images.read(path, arguments.resolution) for path in paths]
    dtype = DTYPES[arguments.mixed_precision]
    pipe = adapters.load_pipeline(arguments.pretrained_model_name_or_path, dtype).to(accelerator.device)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise RunError(f"the model must predict noise or velocity; it predicts {scheduler.config.prediction_type!r}")
    sets = [(pictures, arguments.instance_prompt)]
    if arguments.class_prompt is not None:
        folder, number = Path(arguments.class_data_dir), arguments.num_class_images
        steps, seed = arguments.class_inference_steps, arguments.seed
        images.complete(pipe, folder, arguments.class_prompt, number, arguments.resolution, steps, seed)
        of_class = [images.read(path, arguments.resolution) for path in images.find(folder)[:number]]
        sets.append((of_class, arguments.class_prompt))
    pipe.vae.to(torch.float32)  # that of SDXL overflows in half precision
    concepts = [encode(pipe, pictures, prompt) for pictures, prompt in sets]
    return Training(arguments, accelerator, pipe.unet, scheduler, concepts, pipe.vae.config.scaling_factor)


def finish(training: Training, folder: Path, seconds: float) -> None:
    """Put adapters and measurements in place at once; checkpoints go."""
    counts = {"coefficients": 0, "lora": 0}
    for name, parameter in training.trained.items():
        counts["coefficients" if "coeff_delta" in name else "lora"] += parameter.numel()
    metrics = {"steps": len(training.losses), "trained": counts, "seconds_since_start_or_resume": round(seconds, 1)}
    metrics |= {"losses": training.losses, **environment.summary()}
    model: PeftModel = training.accelerator.unwrap_model(training.model)
    with run_folder.replacing(folder) as staging:
        shutil.copy(folder / run_folder.CONFIG_FILE, staging)
        model.save_pretrained(str(staging))
        adapters.save_for_pipeline(model, staging)
        (staging / run_folder.METRICS_FILE).write_text(json.dumps(metrics, indent=1))
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    print(f"{counts['coefficients']:,} coefficients and {counts['lora']:,} LoRA numbers trained, written to {folder}")


def train(arguments: argparse.Namespace) -> None:
    """Train, or go on with a run; a finished one is left as it is."""
    check(arguments)
    folder = Path(arguments.output_dir)
    settings = {name: value for name, value in vars(arguments).items() if name not in NOT_SETTINGS}
    checkpoint = run_folder.start(folder, settings, "true", overwrite=False)
    if (folder / run_folder.METRICS_FILE).exists():
        print(f"{folder} is finished, with the same settings; nothing to do")
        return
    started = time.monotonic()
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps, mixed_precision=arguments.mixed_precision
    )
    if accelerator.num_processes > 1:
        raise RunError(f"one process trains; accelerate started {accelerator.num_processes}. Use --num_processes 1")
    training = prepare(arguments, accelerator)
    run_folder.claim(folder, settings, checkpoint)
    if checkpoint is not None:
        training.load(checkpoint)
        print(f"going on after step {len(training.losses)}", flush=True)
    training.run(folder)
    finish(training, folder, time.monotonic() - started)


def main(argv: list[str] | None = None) -> int:
    try:
        train(parse(argv))
    except CoeffTuningError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
