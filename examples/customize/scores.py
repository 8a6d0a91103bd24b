"""How much images look like the subject, fit their prompt, and differ from those of the base model."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


class Dino:
    """Image features of a DINO model: its class token, of length 1.

    Args:
        name: folder or hub id.
    """

    label = "dino"

    def __init__(self, name: str) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.processor = AutoImageProcessor.from_pretrained(name)
        self.model = AutoModel.from_pretrained(name).eval()

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        made = [self.model(**self.processor(images=image, return_tensors="pt")) for image in images]
        return F.normalize(torch.cat([output.last_hidden_state[:, 0] for output in made]), dim=-1)


class Clip:
    """Image and text features of a CLIP model, of length 1.

    Args:
        name: folder or hub id.
    """

    label = "clip"

    def __init__(self, name: str) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        self.processor = AutoImageProcessor.from_pretrained(name)
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.model = CLIPModel.from_pretrained(name).eval()

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = [self.processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
        pooled = [self.model.vision_model(pixel_values=p).pooler_output for p in pixels]
        return F.normalize(self.model.visual_projection(torch.cat(pooled)), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return F.normalize(self.model.text_projection(self.model.text_model(**tokens).pooler_output), dim=-1)


def measure(
    kind: type[Dino] | type[Clip],
    name: str,
    photographs: list[Image.Image],
    drawn: dict[str, dict[str, list[Image.Image]]],
    prompts: list[str],
    unrelated: list[str],
) -> dict[str, float | str]:
    """Scores by one model, for base and tuned images.

    Args:
        kind: of the model.
        name: folder or hub id; where it cannot be loaded, the only score says so.
        photographs: of the subject.
        drawn: images of "base" and "tuned" by prompt, from the same noise.
        prompts: those with the subject.
        unrelated: those without.

    Returns:
        Mean cosines: concept alignment to the photographs, text alignment (CLIP) to the prompts; drift is 1 - cosine
        of the base and the tuned image.
    """
    label = kind.label
    try:
        model = kind(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        return {label: f"not measured: {name} cannot be loaded ({reason}); name a folder with --{label}_model"}
    found: dict[str, float | str] = {}
    subject = model.images(photographs)
    for which in ("base", "tuned"):
        made = [image for prompt in prompts for image in drawn[which][prompt]]
        features = model.images(made)
        found[f"{label}_concept_alignment_{which}"] = float((features @ subject.T).mean())
        if isinstance(model, Clip):
            of_each = model.texts([prompt for prompt in prompts for _ in drawn[which][prompt]])
            found[f"{label}_text_alignment_{which}"] = float((features * of_each).sum(-1).mean())
    base, tuned = (model.images([i for p in unrelated for i in drawn[which][p]]) for which in ("base", "tuned"))
    found[f"{label}_drift"] = float(1 - (base * tuned).sum(-1).mean())
    return found
