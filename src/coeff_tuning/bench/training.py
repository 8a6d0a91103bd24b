"""Training steps of whole models: coefficients on every layer, LoRA, and the least that reaches the first layer.

A step is forward, loss, backward and AdamW on what is trained. Weights are random and of the real sizes; dropout of
the models is 0, with which torch's attention is at its fastest. The variants:

    coeff   CoeffConfig() on every attention layer
    lora    PEFT's LoRA, r = 8 on query and value
    head    the head alone, after the same full backward: the output of the embeddings requires grad (as by
            `enable_input_require_grads` of transformers), so that gradients flow through all layers down to it

`head` is what any method costs that trains something in the first layer, without the method. Classifiers train their
head in all variants; language models have none, and `head` trains their last norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from coeff_tuning.recipes.methods import query_and_value

COEFF, LORA, HEAD = "coeff", "lora", "head"
VARIANTS = (COEFF, LORA, HEAD)


@dataclass(frozen=True)
class Case:
    """A model and its batches.

    Attributes:
        name: on the command line.
        about: what is run, for tables.
        build: makes the model.
        batch: makes a batch; of one short sample if `small`.
        head: the module that `head` trains.
        head_in_all: whether the other variants train it too.
        checkpointing: whether activations are computed again in the backward pass.
    """

    name: str
    about: str
    build: Callable[[], Any]
    batch: Callable[[bool], dict[str, Any]]
    head: str
    head_in_all: bool = True
    checkpointing: bool = False


def vit_b() -> Any:
    """ViT-B/16 at 224 px, with 100 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=100))


def minilm() -> Any:
    """MiniLM-L6-H384 with 5 classes."""
    from transformers import BertForSequenceClassification

    return BertForSequenceClassification(minilm_config())


def minilm_config() -> Any:
    """Sizes of MiniLM-L6-H384."""
    from transformers import BertConfig

    return BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def smollm2() -> Any:
    """SmolLM2-135M; without a token that ends a text, so that generation has the length asked for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def _images(small: bool) -> dict[str, Any]:
    count = 1 if small else 8
    return {"pixel_values": torch.randn(count, 3, 224, 224), "labels": torch.randint(100, (count,))}


def _texts(small: bool) -> dict[str, Any]:
    count, length = (1, 8) if small else (32, 128)
    return {"input_ids": torch.randint(30522, (count, length)), "labels": torch.randint(5, (count,))}


def _tokens(small: bool) -> dict[str, Any]:
    ids = torch.randint(49152, (1, 16 if small else 1024))
    return {"input_ids": ids, "labels": ids, "use_cache": False}


_LM = "SmolLM2-135M, 1 x 1024 tokens"
CASES = {
    case.name: case
    for case in (
        Case("vit", "ViT-B/16, 8 images of 224 px", vit_b, _images, "classifier"),
        Case("minilm", "MiniLM-L6, 32 x 128 tokens", minilm, _texts, "classifier"),
        Case("smollm2", _LM, smollm2, _tokens, "norm", False),
        Case("smollm2-checkpointing", f"{_LM}, gradient checkpointing", smollm2, _tokens, "norm", False, True),
    )
}


def prepare(case: Case, variant: str) -> Any:
    """A model in training mode in which a variant's numbers are trainable.

    Args:
        case: model and batches.
        variant: one of `VARIANTS`.

    Returns:
        The model, or a `PeftModel`.
    """
    import peft

    from coeff_tuning import CoeffConfig

    torch.manual_seed(0)
    model = case.build()
    heads = [case.head] if case.head_in_all else None
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if variant == COEFF:  # a random start stands for trained coefficients
        model = peft.get_peft_model(model, CoeffConfig(init="random", init_scale=0.1, modules_to_save=heads))
    elif variant == LORA:
        targets = query_and_value(model)
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, modules_to_save=heads)
        model = peft.get_peft_model(model, config)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(case.head in name.split("."))
        model.enable_input_require_grads()
    return model.train()


def make_step(case: Case, model: Any) -> Callable[[], object]:
    """A training step on a batch that stays the same.

    Args:
        case: model and batches.
        model: from `prepare`.

    Returns:
        The step.
    """
    torch.manual_seed(1)
    batch = case.batch(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def prepare_memory(name: str, variant: str) -> tuple[Callable[[], object], str]:
    """What a child process measures: two steps, the second with the optimizer's state in place.

    Args:
        name: of the case.
        variant: one of `VARIANTS`.

    Returns:
        The work, and the device.
    """
    case = CASES[name]
    model = prepare(case, variant)
    model(**case.batch(True)).loss.backward()  # libraries and thread pools
    model.zero_grad()
    step = make_step(case, model)
    return lambda: (step(), step()), "cpu"


def problem_with(model: Any, batch: dict[str, Any]) -> str:
    """The gate of whole models: coefficients change the output, and each gets a gradient.

    Args:
        model: a `PeftModel` with coefficients that are not the identity.
        batch: a small one, with labels.

    Returns:
        What is wrong, or nothing.
    """
    was_training = model.training
    model.eval()
    out = model(**batch)
    with torch.no_grad(), model.disable_adapter():
        base = model(**batch).logits
    change = float((out.logits.detach() - base).abs().max() / base.abs().max())
    out.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "coeff_delta" in name}
    model.zero_grad()
    model.train(was_training)
    if not change > 1e-4:
        return f"coefficients must change the output; it changes by {change:.1e} of its largest entry"
    for name, gradient in gradients.items():
        if gradient is None or not gradient.isfinite().all() or (gradient == 0).any():
            return f"every coefficient must get a gradient; those of {name} are {gradient}"
    return "" if gradients else "the model must have coefficients; none were found"
