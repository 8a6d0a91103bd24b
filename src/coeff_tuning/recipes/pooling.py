"""A classifier on mean-pooled token features, for sentence encoders.

`AutoModelForSequenceClassification` puts BERT's head on the pooler, a layer that sentence encoders such as MiniLM
never trained; they were trained as the mean over tokens.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import cached_file


class MeanPoolingForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """Any `AutoModel` encoder, the mean over its tokens, and one linear layer.

    Works with PEFT's `SEQ_CLS` task type: the head is called `classifier`.

    Args:
        config: configuration of the encoder, with `num_labels`.
    """

    config_class = PreTrainedConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config)
        if hasattr(self.encoder, "pooler"):
            self.encoder.pooler = None  # its output is not used
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def from_pretrained(cls, name_or_path: str, **kwargs: Any) -> MeanPoolingForSequenceClassification:
        """Load a saved model of this class, or put a new head on an encoder.

        Args:
            name_or_path: hub id or local folder.
            **kwargs: `config`, `dtype`, or changes to the configuration such as `num_labels`.

        Returns:
            The model, in eval mode.
        """
        config = kwargs.pop("config", None)
        dtype = kwargs.pop("dtype", None)
        if config is None:
            config = AutoConfig.from_pretrained(name_or_path, **kwargs)
        if is_saved(config):
            return super().from_pretrained(name_or_path, config=config, dtype=dtype)  # type: ignore[no-any-return]
        model = cls(config)
        model.encoder = AutoModel.from_pretrained(name_or_path, config=config, dtype=dtype)
        if hasattr(model.encoder, "pooler"):
            model.encoder.pooler = None
        model.name_or_path = name_or_path
        model.to(dtype or model.encoder.dtype).eval()
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify a batch of texts.

        Args:
            input_ids: `(B, L)`.
            attention_mask: `(B, L)`, 1 for tokens that count. Default: all.
            inputs_embeds: `(B, L, hidden)`, instead of `input_ids`.
            labels: `(B,)` class numbers; adds the cross-entropy.
            **kwargs: passed to the encoder.

        Returns:
            `logits` `(B, num_labels)`, and `loss` where `labels` are given.
        """
        kwargs["return_dict"] = True
        outputs = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )
        hidden = outputs.last_hidden_state  # (B, L, hidden)
        if attention_mask is None:
            pooled = hidden.mean(1)
        else:
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, L, 1)
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        logits = self.classifier(pooled)
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _init_weights(self, module: nn.Module) -> None:
        """Start the head as BERT's; the encoder initialises itself."""
        if module is getattr(self, "classifier", None):
            torch.nn.init.normal_(self.classifier.weight, std=getattr(self.config, "initializer_range", 0.02))
            torch.nn.init.zeros_(self.classifier.bias)


def is_saved(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint was saved by `MeanPoolingForSequenceClassification`, with its head.

    Args:
        config: that of the checkpoint.

    Returns:
        False for a plain encoder.
    """
    return MeanPoolingForSequenceClassification.__name__ in (config.architectures or ())


def is_mean_pooled(name_or_path: str) -> bool:
    """Whether a checkpoint is of the class above, or a sentence encoder whose pooling file asks for the mean.

    Args:
        name_or_path: hub id or local folder.

    Returns:
        False where there is no such file.
    """
    if is_saved(AutoConfig.from_pretrained(name_or_path)):
        return True
    path = cached_file(
        name_or_path,
        "config.json",
        subfolder="1_Pooling",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return False
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    return bool(settings.get("pooling_mode_mean_tokens") or settings.get("pooling_mode") == "mean")
