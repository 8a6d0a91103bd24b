"""Tiny random models of many families, with inputs. Sizes are small and differ where they can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from coeff_tuning import CoeffConfig, CoeffLayer

TEXT = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 14,
    "patch_size": 7,
}
DECODER = {
    **TEXT,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Families whose head size is the width over the heads.
GROUPED = {key: value for key, value in DECODER.items() if key != "head_dim"}


def _ids(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(3, 61, (batch, length))


def text(model: type[nn.Module], config: Any) -> tuple[nn.Module, dict[str, Any]]:
    ids = _ids()
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return model(config), {"input_ids": ids, "attention_mask": mask}


def decoder(model: type[nn.Module], config: Any) -> tuple[nn.Module, dict[str, Any]]:
    ids = _ids()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # left padding
    return model(config), {"input_ids": ids, "attention_mask": mask}


def image(model: type[nn.Module], config: Any, size: int = 14) -> tuple[nn.Module, dict[str, Any]]:
    return model(config), {"pixel_values": torch.randn(2, 3, size, size)}


def _seq2seq(model_class: type[nn.Module], config_class: type[Any]) -> tuple[nn.Module, dict[str, Any]]:
    config = config_class(
        vocab_size=61,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=20,
        decoder_ffn_dim=20,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    model, inputs = text(model_class, config)
    return model, {**inputs, "decoder_input_ids": _ids(length=5)}


def _t5() -> tuple[nn.Module, dict[str, Any]]:
    config = tf.T5Config(
        vocab_size=61, d_model=24, d_kv=8, d_ff=20, num_layers=2, num_heads=3, decoder_start_token_id=0
    )
    model, inputs = text(tf.T5ForConditionalGeneration, config)
    return model, {**inputs, "decoder_input_ids": _ids(length=5)}


def _whisper() -> tuple[nn.Module, dict[str, Any]]:
    config = tf.WhisperConfig(
        vocab_size=61,
        num_mel_bins=8,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=20,
        decoder_ffn_dim=20,
        max_source_positions=10,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    model = tf.WhisperForConditionalGeneration(config)
    return model, {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": _ids(length=5)}


def _speech(model_class: type[nn.Module], config_class: type[Any]) -> tuple[nn.Module, dict[str, Any]]:
    config = config_class(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        conv_dim=[8, 8],
        conv_kernel=[5, 3],
        conv_stride=[4, 2],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return model_class(config), {"input_values": torch.randn(2, 100)}


def _clip() -> tuple[nn.Module, dict[str, Any]]:
    config = tf.CLIPConfig(text_config={**TEXT, "bos_token_id": 1, "eos_token_id": 2}, vision_config=VISION)
    model, inputs = text(tf.CLIPModel, config)
    return model, {**inputs, "pixel_values": torch.randn(2, 3, 14, 14)}


def _llava() -> tuple[nn.Module, dict[str, Any]]:
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION),
        text_config=tf.LlamaConfig(**DECODER),
        image_token_index=5,
        vision_feature_layer=-1,
    )
    ids = torch.tensor([[1, 5, 5, 5, 5, 9, 11]])  # 4 image tokens
    return tf.LlavaForConditionalGeneration(config), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 14, 14),
    }


def _vit_mae() -> tuple[nn.Module, dict[str, Any]]:
    model, inputs = image(tf.ViTMAEModel, tf.ViTMAEConfig(**VISION, mask_ratio=0.0))
    return model, {**inputs, "noise": torch.rand(2, 4)}  # the order of the patches, random otherwise


FAMILIES: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "bert": lambda: text(tf.BertModel, tf.BertConfig(**TEXT)),
    "roberta": lambda: text(tf.RobertaModel, tf.RobertaConfig(**TEXT)),
    "distilbert": lambda: text(
        tf.DistilBertModel, tf.DistilBertConfig(vocab_size=61, dim=24, n_layers=2, n_heads=3, hidden_dim=20)
    ),
    "electra": lambda: text(tf.ElectraModel, tf.ElectraConfig(**TEXT, embedding_size=24)),
    "modernbert": lambda: text(
        tf.ModernBertModel,
        tf.ModernBertConfig(**TEXT, global_attn_every_n_layers=2, local_attention=4, bos_token_id=1, eos_token_id=2),
    ),
    "vit": lambda: image(tf.ViTModel, tf.ViTConfig(**VISION)),
    "deit": lambda: image(tf.DeiTModel, tf.DeiTConfig(**VISION)),
    "dinov2": lambda: image(tf.Dinov2Model, tf.Dinov2Config(**VISION)),
    "beit": lambda: image(tf.BeitModel, tf.BeitConfig(**VISION, use_relative_position_bias=True)),
    "siglip_vision": lambda: image(tf.SiglipVisionModel, tf.SiglipVisionConfig(**VISION)),
    "swin": lambda: image(
        tf.SwinModel,
        tf.SwinConfig(image_size=16, patch_size=2, embed_dim=12, depths=[2, 1], num_heads=[3, 4], window_size=4),
        size=16,
    ),
    "gpt2": lambda: decoder(
        tf.GPT2LMHeadModel,
        tf.GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=3, n_positions=64, bos_token_id=1, eos_token_id=2),
    ),
    "opt": lambda: decoder(
        tf.OPTForCausalLM,
        tf.OPTConfig(
            **{k: v for k, v in TEXT.items() if k != "intermediate_size"},
            ffn_dim=20,
            word_embed_proj_dim=24,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "llama": lambda: decoder(tf.LlamaForCausalLM, tf.LlamaConfig(**DECODER)),
    "mistral": lambda: decoder(tf.MistralForCausalLM, tf.MistralConfig(**DECODER, sliding_window=4)),
    "qwen2": lambda: decoder(tf.Qwen2ForCausalLM, tf.Qwen2Config(**DECODER)),
    "qwen3": lambda: decoder(tf.Qwen3ForCausalLM, tf.Qwen3Config(**DECODER)),
    "gemma2": lambda: decoder(tf.Gemma2ForCausalLM, tf.Gemma2Config(**DECODER, sliding_window=4)),
    "gemma3": lambda: decoder(tf.Gemma3ForCausalLM, tf.Gemma3TextConfig(**DECODER, sliding_window=4)),
    "gpt_oss": lambda: decoder(
        tf.GptOssForCausalLM,
        tf.GptOssConfig(**DECODER, sliding_window=4, num_local_experts=2, num_experts_per_tok=1),
    ),
    "t5": _t5,
    "bart": lambda: _seq2seq(tf.BartForConditionalGeneration, tf.BartConfig),
    "whisper": _whisper,
    "wav2vec2": lambda: _speech(tf.Wav2Vec2Model, tf.Wav2Vec2Config),
    "clip": _clip,
    "llava": _llava,
    "albert": lambda: text(tf.AlbertModel, tf.AlbertConfig(**TEXT, embedding_size=24)),
    "xlm_roberta": lambda: text(tf.XLMRobertaModel, tf.XLMRobertaConfig(**TEXT)),
    "camembert": lambda: text(tf.CamembertModel, tf.CamembertConfig(**TEXT)),
    "esm": lambda: text(tf.EsmModel, tf.EsmConfig(**TEXT, mask_token_id=1, position_embedding_type="rotary")),
    "data2vec_text": lambda: text(tf.Data2VecTextModel, tf.Data2VecTextConfig(**TEXT)),
    "dinov3": lambda: image(tf.DINOv3ViTModel, tf.DINOv3ViTConfig(**VISION)),
    "vit_mae": _vit_mae,
    "gpt_neox": lambda: decoder(tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**TEXT, bos_token_id=1, eos_token_id=2)),
    "phi3": lambda: decoder(tf.Phi3ForCausalLM, tf.Phi3Config(**GROUPED)),
    "mixtral": lambda: decoder(
        tf.MixtralForCausalLM, tf.MixtralConfig(**DECODER, num_local_experts=2, num_experts_per_tok=1)
    ),
    "olmo2": lambda: decoder(tf.Olmo2ForCausalLM, tf.Olmo2Config(**GROUPED)),
    "granite": lambda: decoder(tf.GraniteForCausalLM, tf.GraniteConfig(**GROUPED)),
    "starcoder2": lambda: decoder(tf.Starcoder2ForCausalLM, tf.Starcoder2Config(**GROUPED)),
    "mbart": lambda: _seq2seq(tf.MBartForConditionalGeneration, tf.MBartConfig),
    "m2m_100": lambda: _seq2seq(tf.M2M100ForConditionalGeneration, tf.M2M100Config),
    "hubert": lambda: _speech(tf.HubertModel, tf.HubertConfig),
}


def build(family: str, attn_implementation: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny random model in evaluation mode, the same at each call, and inputs for it."""
    torch.manual_seed(0)
    model, inputs = FAMILIES[family]()
    if attn_implementation is not None:
        model.set_attn_implementation(attn_implementation)
    return model.eval(), inputs


def output(model: nn.Module, inputs: dict[str, Any], **kwargs: Any) -> Tensor:
    """The main output tensor of a forward pass."""
    out = model(**inputs, **kwargs)
    is_pooled_by_attention = any(isinstance(module, nn.MultiheadAttention) for module in model.modules())
    names = ("logits", "logits_per_image", "last_hidden_state")
    for name in ("pooler_output", *names) if is_pooled_by_attention else names:
        if getattr(out, name, None) is not None:
            return getattr(out, name)
    raise AssertionError(f"{type(out).__name__} has no known output")


def randomise(model: nn.Module, scale: float = 0.5, seed: int = 1) -> nn.Module:
    """Give every coefficient a random, signed, non-symmetric value, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "coeff_delta" in name:
            parameter.data = scale * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def adapt(model: nn.Module, **config: Any) -> PeftModel:
    """A model with random coefficients on every attention module, in evaluation mode."""
    return randomise(get_peft_model(model, CoeffConfig(**{"coeff_dropout": 0.0, **config})).eval())


def layers(model: nn.Module) -> list[CoeffLayer]:
    """Every layer of coefficients."""
    return [m for m in model.modules() if isinstance(m, CoeffLayer)]


def deltas(model: nn.Module) -> list[nn.Parameter]:
    """Every trained matrix."""
    return [p for n, p in model.named_parameters() if "coeff_delta" in n]
