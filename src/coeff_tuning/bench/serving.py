"""Coefficients in use: generation, many adapters in one batch, and loading one into a model that is running."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, cycle
from typing import Any

import torch
from torch import Tensor

from coeff_tuning.bench.timing import Times, interleave
from coeff_tuning.bench.training import minilm_config, smollm2, vit_b

PROMPT_TOKENS, NEW_TOKENS = 128, 64
ADAPTERS, TEXT_TOKENS = 256, 32
NEW, SWAP = "under a new name", "over a name in use"


@dataclass(frozen=True)
class Pair:
    """A call and its rival, checked.

    Attributes:
        calls: the rival first; by name.
        problem: what is wrong, or nothing.
        trainable: how many coefficients take part, by name.
    """

    calls: dict[str, Callable[[], object]]
    problem: str
    trainable: dict[str, int]


def random_coefficients(model: Any, name: str = "default") -> Any:
    """A `PeftModel` in evaluation mode whose adapter stands for a trained one."""
    import peft

    return peft.get_peft_model(model, _config(), adapter_name=name).eval()


def _config() -> Any:
    from coeff_tuning import CoeffConfig

    return CoeffConfig(init="random", init_scale=0.1)


def _count(model: Any) -> int:
    """Coefficients of the active adapter."""
    suffix = f".{model.active_adapter}"
    return sum(p.numel() for name, p in model.named_parameters() if "coeff_delta" in name and name.endswith(suffix))


def generation() -> Pair:
    """SmolLM2-135M writes 64 tokens after 128, greedily: the base model, and one with coefficients."""
    torch.manual_seed(0)
    base = smollm2().eval()
    torch.manual_seed(0)
    tuned = random_coefficients(smollm2())
    prompt = torch.randint(49152, (1, PROMPT_TOKENS))
    mask = torch.ones_like(prompt)

    def write(model: Any) -> Tensor:
        return model.generate(  # type: ignore[no-any-return]
            input_ids=prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False
        )

    with torch.no_grad():
        plain = base(prompt).logits
        change = float((tuned(prompt).logits - plain).abs().max())
        with tuned.disable_adapter():
            same = torch.equal(tuned(prompt).logits, plain)
        written = write(tuned).shape[1] - PROMPT_TOKENS
    problem = "" if change > 1e-4 else f"coefficients must change the logits; they change by {change:.1e}"
    if not same:
        problem = "both models must be the same without coefficients; their logits differ"
    if written != NEW_TOKENS:
        problem = f"{NEW_TOKENS} tokens must be written; got {written}"
    calls: dict[str, Callable[[], object]] = {"base": lambda: write(base), "coeff": lambda: write(tuned)}
    return Pair(calls, problem, {"base": 0, "coeff": _count(tuned)})


def many_adapters() -> Pair:
    """MiniLM on 256 texts of 32 tokens: one adapter for all, and an adapter of its own for each."""
    from transformers import BertModel

    torch.manual_seed(0)
    names = [f"a{number}" for number in range(ADAPTERS)]
    model = random_coefficients(BertModel(minilm_config()), names[0])
    each = _count(model)
    for name in names[1:]:
        model.add_adapter(name, _config())
    ids = torch.randint(30522, (ADAPTERS, TEXT_TOKENS))

    def run(**kwargs: Any) -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids, **kwargs).last_hidden_state  # type: ignore[no-any-return]

    mixed, problem = run(adapter_names=names), ""
    for index in (0, 1, ADAPTERS - 1):
        model.set_adapter(names[index])
        with torch.no_grad():
            alone = model(input_ids=ids[index : index + 1]).last_hidden_state
        error = float((mixed[index : index + 1] - alone).abs().max() / alone.abs().max())
        if not error < 1e-4:
            problem = f"text {index} must come out as under its adapter alone; it is off by {error:.1e}"
    model.set_adapter(names[0])
    if not (mixed[1] - run()[1]).abs().max() > 1e-3:
        problem = "adapters must differ; two gave the same output"
    calls: dict[str, Callable[[], object]] = {
        "one adapter": run,
        f"{ADAPTERS} adapters": lambda: run(adapter_names=names),
    }
    return Pair(calls, problem, dict(zip(calls, (each, ADAPTERS * each), strict=True)))


@dataclass(frozen=True)
class Loading:
    """Times and checks of `load_adapter`.

    Attributes:
        times: of loading under a name that is `NEW` and of one that is in use, a `SWAP`.
        recompilations: graphs compiled because of a swap.
        problem: what is wrong, or nothing.
        trainable: numbers of the adapter.
    """

    times: Times
    recompilations: int
    problem: str
    trainable: int


def loading(rounds: int | None, build: Callable[[], Any] = vit_b) -> Loading:
    """Load a saved adapter into ViT-B/16 that has one already, under a new name and over the existing one.

    Args:
        rounds: loads of each; None for 20.
        build: makes the model.

    Returns:
        What was measured.
    """
    with _saved_adapters(build) as (model, folders):
        names, in_turn = count(), cycle(folders)
        calls = {
            NEW: lambda: model.load_adapter(folders[0], f"new{next(names)}"),
            SWAP: lambda: model.load_adapter(next(in_turn), "one"),
        }
        times = interleave(calls, "cpu", rounds or 20)
        recompilations, problem = _swap_compiled(model, folders)
        return Loading(times, recompilations, problem, _count(model))


@contextmanager
def _saved_adapters(build: Callable[[], Any]) -> Iterator[tuple[Any, list[str]]]:
    """A model with the adapter "one", and folders of two adapters for it."""
    torch.manual_seed(0)
    model = random_coefficients(build(), "one")
    with tempfile.TemporaryDirectory() as root:
        folders = []
        for name in ("first", "second"):
            model.add_adapter(name, _config())
            model.save_pretrained(root, selected_adapters=[name])
            model.delete_adapter(name)
            folders.append(f"{root}/{name}")
        yield model, folders


@torch.no_grad()
def _swap_compiled(model: Any, folders: list[str]) -> tuple[int, str]:
    """Swap adapters in a compiled model: graphs compiled for it, and whether it runs the adapter that was loaded."""
    from torch._dynamo.testing import CompileCounter

    pixels = torch.randn(1, 3, model.config.image_size, model.config.image_size)
    counter = CompileCounter()
    compiled: Any = torch.compile(model, backend=counter)
    model.load_adapter(folders[0], "one")
    first = compiled(pixels).logits
    graphs = counter.frame_count
    problem = "" if graphs else "torch.compile must compile the model; it compiled no graph"
    model.load_adapter(folders[1], "one")
    second = compiled(pixels).logits
    if not (first - second).abs().max() > 1e-4:
        problem = "a compiled model must run the adapter that was loaded last; its output did not change"
    elif not torch.allclose(second, model(pixels).logits, atol=1e-4):
        problem = "a compiled model must give what the model itself gives; it does not after a swap"
    torch.compiler.reset()
    return counter.frame_count - graphs, problem
