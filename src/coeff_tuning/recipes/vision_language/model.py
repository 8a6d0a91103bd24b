"""A language model with projected image features in front of its text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig

from coeff_tuning.errors import RunError

PROJECTION = "visual_projection"
IGNORED = -100  # labels that have no loss


class SeesImages:
    """Mixed into a language model: it reads `LayerNorm(Linear(features))` before its text.

    Encoder-decoders read them in their encoder, decoders before the prompt. Tokens that are masked move to the end, so
    that positions do not depend on what else is in the batch.

    Args:
        config: of the language model; its `visual_width` is the number of features of an image token.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        width = config.get_text_config().hidden_size
        self.visual_projection = nn.Sequential(nn.Linear(config.visual_width, width), nn.LayerNorm(width))
        self.post_init()  # type: ignore[attr-defined]

    def forward(
        self,
        features: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the language model, with images.

        Args:
            features: `(B, N, width)`. None: the language model as it is.
            labels: of an encoder-decoder as usual; of a decoder `(B, N + L)`, `IGNORED` for images and prompt.
            num_items_in_batch: labels that all processes and accumulated batches share a step with; None: those here.
            **kwargs: as for the language model; with features `input_ids` `(B, L)` and `attention_mask` `(B, N + L)`.

        Returns:
            What the language model returns. For a decoder with labels, logits are only those of positions where a
            sample of the batch has a label.
        """
        own: Any = super()
        if features is None:
            return own.forward(labels=labels, **kwargs)
        embedded, mask, order = self.join(features, kwargs.pop("input_ids"), kwargs.pop("attention_mask"))
        kwargs |= {"inputs_embeds": embedded, "attention_mask": mask}
        if labels is None:
            return own.forward(**kwargs)
        if self.config.is_encoder_decoder:  # type: ignore[attr-defined]
            outputs, wanted = own.forward(labels=labels, **kwargs), labels
        else:
            following = labels.gather(1, order)[:, 1:]
            positions = (following != IGNORED).any(0).nonzero().squeeze(1)
            outputs, wanted = own.forward(logits_to_keep=positions, **kwargs), following[:, positions]
        total = F.cross_entropy(outputs.logits.flatten(0, 1).float(), wanted.flatten(), reduction="sum")
        outputs.loss = total / ((wanted != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
        return outputs

    def join(
        self, features: Tensor, input_ids: Tensor, mask: Tensor, *, pad_left: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Projected features, then the embedded text, without gaps.

        Args:
            features: `(B, N, width)`.
            input_ids: `(B, L)`.
            mask: `(B, N + L)`, 0 where there is nothing.
            pad_left: move masked tokens to the beginning, as generation of a decoder needs it.

        Returns:
            Embeddings `(B, N + L, d)`, their mask, and the order `(B, N + L)` in which they are now.
        """
        model: Any = self
        body = model.get_encoder() if model.config.is_encoder_decoder else model
        text = body.get_input_embeddings()(input_ids)
        embedded = torch.cat([self.visual_projection(features).to(text.dtype), text], dim=1)
        order = mask.argsort(dim=1, descending=not pad_left, stable=True)
        return embedded.gather(1, order[..., None].expand_as(embedded)), mask.gather(1, order), order

    @torch.no_grad()
    def answer(self, features: Tensor, input_ids: Tensor, mask: Tensor, **sizes: Any) -> Tensor:
        """Generate text for images and prompts.

        Args:
            features: `(B, N, width)`.
            input_ids: `(B, L)`.
            mask: `(B, N + L)`.
            **sizes: as for `generate`.

        Returns:
            Token ids `(B, length)`, without the prompt.
        """
        model: Any = self
        embedded, mask, _ = self.join(features, input_ids, mask, pad_left=not model.config.is_encoder_decoder)
        return model.generate(inputs_embeds=embedded, attention_mask=mask, **sizes)  # type: ignore[no-any-return]


def load_pretrained(source: str, width: int) -> Any:
    """A pretrained language model with a new projection.

    Args:
        source: hub id or local folder.
        width: number of features of an image token.

    Returns:
        The model, in float32; its class is `SeesImages` and that of the checkpoint.

    Raises:
        RunError: it cannot be loaded, or is no language model.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        config.visual_width = width
        return model_class(config).from_pretrained(source, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(f"language model {source!r} cannot be loaded: {reason}") from error


def model_class(config: Any) -> Any:
    """The class of a language model that sees images.

    Args:
        config: of the language model.

    Returns:
        A subclass of `SeesImages` and of transformers' class.

    Raises:
        RunError: transformers has no encoder-decoder or decoder of this type.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )

    known = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in known:
        raise RunError(
            f"{config.model_type!r} is neither an encoder-decoder nor a decoder for text; take a BART or Llama"
        )
    base = known[type(config)]
    return type(f"{base.__name__}WithImages", (SeesImages, base), {"__module__": __name__})
