r"""Look at what a run learned, and measure it: concept alignment, text alignment, drift on unrelated prompts.

    python examples/customize/evaluate.py runs/dog

writes `runs/dog/evaluation`: the images, `sheet.png` and `scores.json`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import adapters
import images
import numpy as np
import scores
import torch
import yaml
from PIL import Image

from coeff_tuning.errors import CoeffTuningError, RunError
from coeff_tuning.recipes import run_folder
from coeff_tuning.recipes.plots import figure

PLACES = ("", " on a beach", " in the snow", " on a cobblestone street")  # behind the prompt of the subject
UNRELATED = ("a red car on a road", "a bowl of fruit on a table", "a castle on a hill", "a portrait of a woman")
Drawn = dict[str, dict[str, list[Image.Image]]]  # "base" or "tuned", then the prompt


def parse(argv: list[str] | None) -> argparse.Namespace:
    summary, example = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(description=summary, epilog=example, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("run", help="finished run folder of train.py")
    add("--prompts", nargs="+", help="with the subject; default: that of the run in four places")
    add("--unrelated_prompts", nargs="+", default=list(UNRELATED))
    add("--images_per_prompt", type=int, default=2)
    add("--num_inference_steps", type=int, default=30)
    add("--guidance_scale", type=float, default=7.5)
    add("--dino_model", default="facebook/dino-vits16", help="folder or hub id")
    add("--clip_model", default="openai/clip-vit-base-patch32", help="folder or hub id")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def read_run(folder: Path) -> dict[str, Any]:
    """Settings of a finished run of train.py."""
    run_folder.read_metrics(folder)
    settings = yaml.safe_load((folder / run_folder.CONFIG_FILE).read_text(encoding="utf-8"))
    if "instance_prompt" not in settings:
        raise RunError(f"{folder} is a run of something else; it must be one of customize/train.py")
    return settings


def draw_all(arguments: argparse.Namespace, settings: dict[str, Any], prompts: list[str]) -> Drawn:
    """Images of base and tuned model from the same noise."""
    is_gpu = torch.cuda.is_available()
    dtype = torch.float16 if is_gpu else torch.float32
    pipe = adapters.load_pipeline(settings["pretrained_model_name_or_path"], dtype)
    pipe.to("cuda" if is_gpu else "cpu")
    model = adapters.load(pipe.unet, arguments.run, settings["method"])

    def drawn() -> dict[str, list[Image.Image]]:
        return {
            prompt: [
                images.draw(
                    pipe,
                    prompt,
                    arguments.seed + number,
                    settings["resolution"],
                    arguments.num_inference_steps,
                    arguments.guidance_scale,
                )
                for number in range(arguments.images_per_prompt)
            ]
            for prompt in prompts
        }

    tuned = drawn()
    with model.disable_adapter():
        return {"base": drawn(), "tuned": tuned}


def pixel_drift(drawn: Drawn, unrelated: list[str]) -> float:
    """Mean absolute difference of pixels in [0, 1] on unrelated prompts; needs no model."""
    pairs = zip(*([i for p in unrelated for i in drawn[which][p]] for which in ("base", "tuned")), strict=True)
    return float(np.mean([np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() / 255 for a, b in pairs]))


def contact_sheet(photographs: list[Image.Image], drawn: Drawn, path: Path) -> None:
    """One row of photographs, then for each prompt the base model's images and, beside them, the tuned one's."""
    each = len(next(iter(drawn["tuned"].values())))
    columns, rows = 2 * each, 1 + len(drawn["tuned"])
    canvas = figure(2 * columns, 2.2 * rows)
    grid = canvas.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image in zip(grid[0], photographs, strict=False):
        axes.imshow(image)
        axes.set_title("subject", fontsize=7)
    for row, prompt in zip(grid[1:], drawn["tuned"], strict=True):
        for index, axes in enumerate(row):
            which = "base" if index < each else "tuned"
            axes.imshow(drawn[which][prompt][index % each])
            axes.set_title(f"{which}: {prompt}" if index % each == 0 else which, fontsize=7, loc="left")
    canvas.savefig(path, dpi=120)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw, measure, write."""
    folder = Path(arguments.run)
    settings = read_run(folder)
    prompts = arguments.prompts or [settings["instance_prompt"] + place for place in PLACES]
    if not all(prompt.strip() for prompt in [*prompts, *arguments.unrelated_prompts]):
        raise RunError("--prompts and --unrelated_prompts must not hold an empty prompt")
    if set(prompts) & set(arguments.unrelated_prompts):
        raise RunError(
            f"{sorted(set(prompts) & set(arguments.unrelated_prompts))} are both with and without the subject"
        )
    if arguments.images_per_prompt < 1:
        raise RunError(f"--images_per_prompt must be at least 1; got {arguments.images_per_prompt}")
    photographs = [images.open_image(path) for path in images.find(settings["instance_data_dir"])]
    drawn = draw_all(arguments, settings, [*prompts, *arguments.unrelated_prompts])
    output = folder / "evaluation"
    with run_folder.writing(output):
        for which, by_prompt in drawn.items():
            (output / which).mkdir(parents=True, exist_ok=True)
            for row, made in enumerate(by_prompt.values()):
                for number, image in enumerate(made):
                    image.save(output / which / f"{row:02d}-{number}.png")
        contact_sheet(photographs, drawn, output / "sheet.png")
    found = {
        **scores.measure(scores.Dino, arguments.dino_model, photographs, drawn, prompts, arguments.unrelated_prompts),
        **scores.measure(scores.Clip, arguments.clip_model, photographs, drawn, prompts, arguments.unrelated_prompts),
        "pixel_drift": pixel_drift(drawn, arguments.unrelated_prompts),
    }
    with run_folder.writing(output):
        text = json.dumps({"settings": vars(arguments) | {"prompts": prompts}, "scores": found}, indent=1)
        (output / "scores.json").write_text(text)
    for name, value in found.items():
        print(f"{name}: {value if isinstance(value, str) else format(value, '.4f')}")
    print(f"written to {output}: sheet.png, scores.json and the images")
    return found


def main(argv: list[str] | None = None) -> int:
    try:
        evaluate(parse(argv))
    except CoeffTuningError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
