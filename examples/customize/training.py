"""Encoded images and prompts, the diffusion loss, and the loop with its checkpoints."""

import argparse
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adapters
import images
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.nn import functional as F

from coeff_tuning.errors import AdapterFileError, RunError
from coeff_tuning.recipes import run_folder

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# A checkpoint is a folder `checkpoint-<steps done>`, the name and the state file `run_folder` knows.
CHECKPOINT_FILES = ("state.pt", "trainer_state.json")


@dataclass
class Concept:
    """All that is needed of images and their prompt once VAE and text encoders are gone.

    Attributes:
        latents: `(N, 2 C, h, w)`, parameters of the VAE's distributions.
        prompt: `(1, T, D)`.
        added: SDXL's `text_embeds` and `time_ids`, `(N, ...)` each; empty for others.
    """

    latents: Tensor
    prompt: Tensor
    added: dict[str, Tensor]


@torch.no_grad()
def encode(pipe: Any, pictures: list[images.Picture], prompt: str) -> Concept:
    """Pass images and prompt through VAE and text encoders, once."""
    device = pipe.vae.device
    encoded = [pipe.vae.encode(p.pixels[None].to(device)).latent_dist.parameters for p in pictures]
    embeds = pipe.encode_prompt(
        prompt=prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    added = {}
    if len(embeds) == 4:  # SDXL: prompt, none, pooled, none
        time_ids = torch.stack([p.time_ids for p in pictures]).to(device)
        added = {"text_embeds": embeds[2].expand(len(pictures), -1), "time_ids": time_ids}
    return Concept(torch.cat(encoded), embeds[0], added)


def chosen(number: int, held: int, size: int, seed: int) -> list[int]:
    """The images of batch `number`: each epoch takes every image once, in an order of its own."""
    found = []
    for position in range(number * size, (number + 1) * size):
        order = torch.Generator().manual_seed((seed << 32) + position // held)
        found.append(int(torch.randperm(held, generator=order)[position % held]))
    return found


def diffusion_loss(model: Any, scheduler: DDPMScheduler, concept: Concept, rows: list[int], scale: float) -> Tensor:
    """Mean squared error of the prediction for noisy latents of some images."""
    dtype = model.get_base_model().dtype
    latents = DiagonalGaussianDistribution(concept.latents[rows]).sample() * scale
    noise = torch.randn_like(latents)
    steps = torch.randint(scheduler.config.num_train_timesteps, (len(rows),), device=latents.device)
    prediction = model(
        scheduler.add_noise(latents, noise, steps).to(dtype),
        steps,
        encoder_hidden_states=concept.prompt.expand(len(rows), -1, -1).to(dtype),
        added_cond_kwargs={name: value[rows].to(dtype) for name, value in concept.added.items()},
    ).sample
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, steps) if is_velocity else noise
    return F.mse_loss(prediction.float(), target)


class Training:
    """A UNet with what is trained in it, its optimiser, and how far they came.

    Args:
        arguments: the flags.
        accelerator: of this process.
        unet: frozen by it.
        scheduler: the noise.
        concepts: the subject and, with prior preservation, its class.
        scale: factor on the latents.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        accelerator: Accelerator,
        unet: Any,
        scheduler: Any,
        concepts: Any,
        scale: float,
    ) -> None:
        self.arguments, self.accelerator, self.scheduler = arguments, accelerator, scheduler
        self.concepts, self.scale, self.losses = concepts, scale, []
        unet.to(accelerator.device, DTYPES[arguments.mixed_precision])
        if arguments.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        torch.manual_seed(arguments.seed)
        model = adapters.attach(unet, arguments.method, arguments.lora_r, arguments.coeff_dropout).train()
        groups = adapters.groups(model, arguments.learning_rate, arguments.coeff_learning_rate)
        self.model, self.optimizer = accelerator.prepare(model, torch.optim.AdamW(groups))

    @property
    def trained(self) -> dict[str, Tensor]:
        """Trained parameters by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def run(self, folder: Path) -> None:
        """Train to the end, with checkpoints in a folder."""
        arguments = self.arguments
        for step in range(len(self.losses), arguments.max_train_steps):
            self.losses.append(self._step(step))
            done = step + 1
            if done % 10 == 0 or done == arguments.max_train_steps:
                print(f"step {done} of {arguments.max_train_steps}, loss {self.losses[-1]:.4f}", flush=True)
            if done % arguments.checkpointing_steps == 0:
                self._save(folder)

    def load(self, checkpoint: str) -> None:
        """Go on where a checkpoint was made."""
        path = Path(checkpoint, CHECKPOINT_FILES[0])
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            raise AdapterFileError(f"checkpoint {path} cannot be read: {error}; delete {checkpoint}") from error
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.losses = state["losses"]

    def _step(self, step: int) -> float:
        arguments, total = self.arguments, 0.0
        weights = (1.0, arguments.prior_loss_weight)
        for number in range(
            step * arguments.gradient_accumulation_steps, (step + 1) * arguments.gradient_accumulation_steps
        ):
            torch.manual_seed((arguments.seed << 32) + number)  # noise and dropout follow from it, also after a resume
            with self.accelerator.accumulate(self.model):
                loss = torch.zeros((), device=self.accelerator.device)
                for concept, weight in zip(self.concepts, weights, strict=False):
                    rows = chosen(number, len(concept.latents), arguments.train_batch_size, arguments.seed)
                    loss = loss + weight * diffusion_loss(self.model, self.scheduler, concept, rows, self.scale)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.trained.values(), arguments.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += loss.item() / arguments.gradient_accumulation_steps
        if not total < float("inf"):
            raise RunError(f"the loss of step {step + 1} is {total}; lower the learning rates")
        return total

    def _save(self, folder: Path) -> None:
        """Write a checkpoint whole, or not at all; then drop the former ones."""
        final = folder / f"checkpoint-{len(self.losses)}"
        partial = folder / f".{final.name}"
        shutil.rmtree(partial, ignore_errors=True)
        with run_folder.writing(folder):
            partial.mkdir()
            scaler = self.accelerator.scaler
            state = {
                "trained": {name: p.detach() for name, p in self.trained.items()},
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "losses": self.losses,
            }
            torch.save(state, partial / CHECKPOINT_FILES[0])
            (partial / CHECKPOINT_FILES[1]).write_text(json.dumps({"global_step": len(self.losses)}))
            os.replace(partial, final)
        for former in set(folder.glob("checkpoint-*")) - {final}:
            shutil.rmtree(former)
