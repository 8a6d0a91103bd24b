"""Real digits of 8 x 8 pixels, a small diffusion transformer that draws them by class, and a judge of what it draws."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn import functional as F

from coeff_tuning.recipes.run_folder import writing

NEW = 9  # the class that the base model never sees
OLD = tuple(range(9))
TRAIN_TIMESTEPS = 1000
SAMPLE_STEPS = 25
BETAS = "squaredcos_cap_v2"
SHAPE = {"num_attention_heads": 8, "attention_head_dim": 16, "num_layers": 4, "patch_size": 2, "sample_size": 8}


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) in [-1, 1] with their classes; `unseen` marks those that the judge does not train on."""

    images: Tensor
    labels: Tensor
    unseen: Tensor


def digits() -> Digits:
    """The 1,797 images of scikit-learn, half of them, class by class, kept from the judge."""
    found = load_digits()
    _, kept = train_test_split(np.arange(len(found.target)), test_size=0.5, stratify=found.target, random_state=0)
    unseen = torch.zeros(len(found.target), dtype=torch.bool)
    unseen[torch.from_numpy(kept)] = True
    images = torch.from_numpy(found.images).float()[:, None] / 8 - 1
    return Digits(images, torch.from_numpy(found.target).long(), unseen)


class Judge:
    """A support vector machine that names digits; it knows nothing of the diffusion model.

    Args:
        data: it trains on the half that is not `unseen`.
    """

    def __init__(self, data: Digits) -> None:
        seen = ~data.unseen
        self.model = SVC(gamma=0.001 * 64).fit(data.images[seen].flatten(1).numpy(), data.labels[seen].numpy())
        self.accuracy = self.share(data.images[data.unseen], data.labels[data.unseen])

    def share(self, images: Tensor, labels: Tensor) -> float:
        """Share of images whose class it names as given."""
        return float((self.model.predict(images.flatten(1).numpy()) == labels.numpy()).mean())


def noise_loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the predicted noise, at random times."""
    scheduler = DDPMScheduler(TRAIN_TIMESTEPS, beta_schedule=BETAS)
    noise = torch.randn(images.shape, generator=generator)
    times = torch.randint(TRAIN_TIMESTEPS, (len(images),), generator=generator)
    noisy = scheduler.add_noise(images, noise, times)
    return F.mse_loss(model(noisy, timestep=times, class_labels=labels).sample, noise)


@torch.no_grad()
def draw(model: nn.Module, labels: Tensor, seed: int) -> Tensor:
    """Images of these classes, by DDIM; the same seed gives the same noise."""
    scheduler = DDIMScheduler(TRAIN_TIMESTEPS, beta_schedule=BETAS)
    scheduler.set_timesteps(SAMPLE_STEPS)
    images = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    for time in scheduler.timesteps:
        predicted = model(images, timestep=time.expand(len(labels)), class_labels=labels).sample
        images = scheduler.step(predicted, time, images).prev_sample
    return images.clamp(-1, 1)


def pretrained(folder: Path, data: Digits, steps: int) -> DiTTransformer2DModel:
    """The base model, trained on the old classes, or loaded from where an earlier run left it.

    Args:
        folder: where it is kept; its name should tell the number of steps.
        data: the digits.
        steps: of training, with 64 images each.

    Returns:
        The model. It stays in eval mode, also in training: classes are never dropped, nothing is guided.
    """
    if folder.exists():
        return DiTTransformer2DModel.from_pretrained(folder).eval()
    torch.manual_seed(0)
    model = DiTTransformer2DModel(in_channels=1, num_embeds_ada_norm=10, **SHAPE).eval()
    generator = torch.Generator().manual_seed(0)
    old = data.labels != NEW
    images, labels = data.images[old], data.labels[old]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        picked = torch.randint(len(images), (64,), generator=generator)
        loss = noise_loss(model, images[picked], labels[picked], generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"pretraining, step {step}: loss {loss.item():.3f}", flush=True)
    with writing(folder.parent):
        partial = folder.with_name(f".{folder.name}.partial")
        model.save_pretrained(partial)
        partial.rename(folder)
    return model
