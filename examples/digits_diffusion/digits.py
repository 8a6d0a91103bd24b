"""Teach a small class-conditional diffusion transformer a new digit from 8 images: coefficients, LoRA, or both.

    python examples/digits_diffusion/digits.py --output_dir runs/digits

A second start goes on where the first one stopped.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from digits_model import NEW, OLD, Digits, Judge, digits, draw, noise_loss, pretrained
from digits_sheet import sheet, summarize
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from coeff_tuning import CoeffConfig, add_coeff
from coeff_tuning.errors import RunError
from coeff_tuning.recipes.environment import summary
from coeff_tuning.studies import rows as row_file

METHODS = ("embedding", "coeff", "lora", "coeff+lora")
STUDY = "digits-diffusion"
SHOTS = 8
PRIOR_IMAGES = 8  # of each old class
RATES = {"embedding": 1e-2, "coeff": 1e-2, "lora": 1e-3}  # untuned


def attach(model: nn.Module, method: str) -> tuple[nn.Module, dict[str, list[nn.Parameter]]]:
    """Freeze the base model and add what the method trains; every method trains the new class's embeddings.

    Args:
        model: changed in place. Each block has class embeddings of its own; those of the new class start at the mean.
        method: one of `METHODS`.

    Returns:
        The model to call, and the trained parameters by kind.
    """
    tuned = model.requires_grad_(False)
    if "lora" in method:
        tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"]))
    if "coeff" in method:
        tuned = add_coeff(tuned, CoeffConfig()) if "lora" in method else get_peft_model(model, CoeffConfig())
    tables = [p for name, p in tuned.named_parameters() if "embedding_table" in name]
    for table in tables:
        table.data[NEW] = table.data[list(OLD)].mean(0)
        table.requires_grad_(True).register_hook(only_new)
    named = [(name, p) for name, p in tuned.named_parameters() if p.requires_grad]
    kinds = {
        "embedding": tables,
        "coeff": [p for name, p in named if "coeff_delta" in name],
        "lora": [p for name, p in named if "lora_" in name],
    }
    return tuned.eval(), {kind: found for kind, found in kinds.items() if found}


def only_new(gradient: Tensor) -> Tensor:
    """The gradient of the new class's row; the others stay as they are."""
    kept = torch.zeros_like(gradient)
    kept[NEW] = gradient[NEW]
    return kept


def numbers(kinds: dict[str, list[nn.Parameter]]) -> dict[str, int]:
    """How many numbers of each kind are trained: one row of each embedding table."""
    return {kind: sum(p.numel() if kind != "embedding" else p.shape[1] for p in ps) for kind, ps in kinds.items()}


def tune(
    model: nn.Module, kinds: dict[str, list[nn.Parameter]], shots: Tensor, prior: Tensor | None, steps: int, seed: int
) -> None:
    """Train what `attach` added.

    Args:
        model: from `attach`.
        kinds: from `attach`.
        shots: images of the new class; each step sees them all, with new noise.
        prior: images (9 * PRIOR_IMAGES, 1, 8, 8) of the old classes, of which each step sees as many, or None.
        steps: of Adam.
        seed: of noise and times.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([{"params": found, "lr": RATES[kind]} for kind, found in kinds.items()])
    for _ in range(steps):
        images, labels = shots, torch.full((len(shots),), NEW)
        if prior is not None:
            picked = torch.randint(len(prior), (len(shots),), generator=generator)
            images = torch.cat([images, prior[picked]])
            labels = torch.cat([labels, picked // PRIOR_IMAGES])
        loss = noise_loss(model, images, labels, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def few_shots(data: Digits, seed: int) -> tuple[Tensor, Tensor]:
    """Images of the new class that the judge has not seen, 8 of them, and all others of the class."""
    candidates = torch.nonzero((data.labels == NEW) & data.unseen).flatten()
    picked = candidates[torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:SHOTS]]
    others = data.labels == NEW
    others[picked] = False
    return data.images[picked], data.images[others]


def nearest(images: Tensor, shots: Tensor) -> Tensor:
    """Root mean square distance (N,) of each image to the nearest shot."""
    return torch.cdist(images.flatten(1), shots.flatten(1)).min(1).values / images[0].numel() ** 0.5


def measure(
    new: Tensor, old: Tensor, base_old: Tensor, shots: Tensor, others: Tensor, judge: Judge
) -> dict[str, float]:
    """Figures of one run.

    Args:
        new: drawn images of the new class.
        old: of the old classes, as many of each, class by class.
        base_old: those of the base model, from the same noise.
        shots: training images.
        others: real images of the new class that were not trained on.
        judge: names digits.

    Returns:
        concept, kept: share that the judge names right; drift: mean squared difference from the base model's; nearest,
        nearest_real: median distance to the nearest shot, of drawn and of real images; copies: share of drawn images
        closer to a shot than any of those real images.
    """
    drawn, real = nearest(new, shots), nearest(others, shots)
    return {
        "concept": judge.share(new, torch.full((len(new),), NEW)),
        "kept": judge.share(old, torch.tensor(OLD).repeat_interleave(len(old) // len(OLD))),
        "drift": float((old - base_old).square().mean()),
        "nearest": float(drawn.median()),
        "nearest_real": float(real.median()),
        "copies": float((drawn < real.min()).float().mean()),
    }


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs that the folder does not hold yet.

    Args:
        args: the flags.

    Returns:
        All rows.

    Raises:
        RunError: the folder's rows were made with other settings.
    """
    path = args.output_dir / "rows.jsonl"
    settings = {"pretrain_steps": args.pretrain_steps, "steps": args.steps, "samples": args.samples, "rates": RATES}
    found = row_file.read(path, STUDY)
    if any(row["settings"] != settings for row in found):
        raise RunError(f"{path} must hold rows of {settings}; it holds others: choose another --output_dir")
    data = digits()
    judge = Judge(data)
    base = pretrained(args.output_dir / f"base-{args.pretrain_steps}", data, args.pretrain_steps)
    old_labels = torch.tensor(OLD).repeat_interleave(args.samples // 5)
    new_labels = torch.full((args.samples,), NEW)
    base_old, prior = draw(base, old_labels, 1), draw(base, torch.tensor(OLD).repeat_interleave(PRIOR_IMAGES), 2)
    wanted = [("base", False, seed) for seed in range(args.seeds)]
    wanted += [(m, p, seed) for p in (True, False) for seed in range(args.seeds) for m in METHODS]
    done = {(row["method"], row["prior"], row["seed"]) for row in found}
    for method, has_prior, seed in wanted:
        if (method, has_prior, seed) in done:
            continue
        start, (shots, others) = time.perf_counter(), few_shots(data, seed)
        model, kinds = attach(copy.deepcopy(base), "embedding" if method == "base" else method)
        if method != "base":  # the base model draws the new class from the mean embedding, where all methods start
            tune(model, kinds, shots, prior if has_prior else None, args.steps, seed)
        new, old = draw(model, new_labels, 3), draw(model, old_labels, 1)
        name = f"{method}-{'prior' if has_prior else 'alone'}-{seed}"
        save_file({"new": new, "old": old, "shots": shots}, args.output_dir / f"{name}.safetensors")
        found.append(
            {"study": STUDY, "method": method, "prior": has_prior, "seed": seed}
            | measure(new, old, base_old, shots, others, judge)
            | {"numbers": {} if method == "base" else numbers(kinds), "judge_accuracy": judge.accuracy}
            | {"seconds": round(time.perf_counter() - start, 1), "settings": settings}
            | {"environment": summary(), "diffusers": diffusers.__version__}
        )
        row_file.write(path, found)
        print(name, {key: round(found[-1][key], 3) for key in ("concept", "kept", "drift", "copies")}, flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="base model, rows, images and sheet")
    parser.add_argument("--pretrain_steps", type=int, default=1500, help="of the base model, with 64 images each")
    parser.add_argument("--steps", type=int, default=200, help="of each customization")
    parser.add_argument(
        "--samples", type=int, default=100, help="drawn of the new class; a fifth of it of each old one"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the 8 images and their noise")
    args = parser.parse_args(argv)
    found = run(args)
    print(summarize(found))
    sheet(args.output_dir, found, METHODS)


if __name__ == "__main__":
    main()
