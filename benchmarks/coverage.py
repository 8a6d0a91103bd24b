"""Which models can get coefficients: attach, run, and compare with each library's own eager math.

python benchmarks/coverage.py  # writes docs/coverage.md and docs/coverage.json; about ten minutes on one core

Every transformers, diffusers, torch and open_clip family is a tiny random model that is run. Of timm, each attention
class is run once, and each pretrained architecture is built without weights (on the meta device) to see which it has.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import get_peft_model
from torch import Tensor, nn

from coeff_tuning import CoeffConfig, CoeffLayer
from coeff_tuning.binders import find_binder, why_refused
from coeff_tuning.errors import CoeffTuningError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.coverage_report import Row, write  # noqa: E402
from tests import tiny  # noqa: E402
from tests.binders import diffusers_cases, test_diffusers, test_open_clip, test_timm, timm_cases, torch_mha_cases  # noqa: E402
from tests.binders.libraries import library  # noqa: E402
from tests.binders.literal import literal_mixing  # noqa: E402

LIMIT = 1e-5
HALF = {"vocab_size": 61, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1}
WINDOWS = {"image_size": 16, "patch_size": 2, "embed_dim": 12, "depths": [1], "num_heads": [3]}
BY_HAND = {
    "deberta_v2": lambda: tf.DebertaV2Model(tf.DebertaV2Config(**tiny.TEXT)),
    "mpnet": lambda: tf.MPNetModel(tf.MPNetConfig(**tiny.TEXT)),
    "gptj": lambda: tf.GPTJModel(tf.GPTJConfig(vocab_size=61, n_embd=24, n_layer=1, n_head=3, rotary_dim=4)),
    "bloom": lambda: tf.BloomModel(tf.BloomConfig(vocab_size=61, hidden_size=24, n_layer=1, n_head=3)),
    "falcon": lambda: tf.FalconModel(tf.FalconConfig(**HALF)),
    "swinv2": lambda: tf.Swinv2Model(tf.Swinv2Config(**WINDOWS)),
    "longformer": lambda: tf.LongformerModel(tf.LongformerConfig(**tiny.TEXT, attention_window=4)),
    "xlnet": lambda: tf.XLNetModel(tf.XLNetConfig(vocab_size=61, d_model=24, n_layer=1, n_head=3, d_inner=20)),
}


def classes_of(model: nn.Module) -> list[str]:
    hosts = [m for m in model.modules() if isinstance(getattr(m, "coefficients", None), CoeffLayer)]
    return sorted({type(host).__name__ for host in hosts})


def measure(
    group: str,
    family: str,
    build: Callable[[], nn.Module],
    run: Callable[[nn.Module], Tensor],
    literal: Callable[[nn.Module], AbstractContextManager[Any]],
) -> Row:
    """One row: the largest error of the output, as a share of its largest entry, against the literal formula."""
    row: Row = {"library": group, "family": family}
    try:
        model = tiny.randomise(get_peft_model(build(), CoeffConfig()).eval(), scale=0.3)
    except (CoeffTuningError, ValueError) as error:
        return {**row, "works": False, "why": str(error)}
    with torch.no_grad():
        ours = run(model)
        with model.disable_adapter():
            plain = run(model)
        with literal(model):
            expected = run(model)
    scale = expected.abs().max()
    error = float((ours - expected).abs().max() / scale)
    changed = float((plain - expected).abs().max() / scale)
    works = error < LIMIT and changed > 10 * error
    return {**row, "classes": classes_of(model), "works": works, "error": error, "changed": changed}


@contextmanager
def eager(model: nn.Module) -> Iterable[None]:
    model.base_model.model.set_attn_implementation("eager")
    with literal_mixing(model), model.disable_adapter():
        yield


def transformers_rows() -> Iterable[Row]:
    for family in tiny.FAMILIES:
        built = tiny.build(family)

        def run(model: nn.Module, inputs: dict[str, Any] = built[1]) -> Tensor:
            out = tiny.output(model, inputs)
            mask = inputs.get("attention_mask")  # padded positions mean nothing
            return out[mask.bool()] if mask is not None and out.dim() == 3 and out.shape[:2] == mask.shape else out

        yield measure("transformers", family, lambda model=built[0]: model, run, eager)
    for family, build in BY_HAND.items():
        yield measure("transformers", family, build, lambda model: torch.zeros(1), eager)


def torch_rows() -> Iterable[Row]:
    torch.manual_seed(0)
    x, memory = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[1, 3:] = True
    image, tokens = torch.randn(2, 3, 16, 16), torch.randint(1, 61, (2, 7))
    decoder = nn.TransformerDecoderLayer(24, 4, 20, batch_first=True)
    users: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
        "nn.TransformerEncoder": (torch_mha_cases.Stack, lambda m: m(x)),
        "nn.TransformerEncoder, padded": (torch_mha_cases.Stack, lambda m: m(x, hidden)[~hidden]),
        "nn.TransformerDecoder": (lambda: nn.TransformerDecoder(decoder, 2), lambda m: m(x, memory)),
        "nn.Transformer": (lambda: nn.Transformer(24, 4, 1, 1, 20, batch_first=True), lambda m: m(memory, x)),
        "torchvision's ViT block": (torch_mha_cases.VisionBlock, lambda m: m(x)),
        "open_clip CLIP": (test_open_clip.clip, lambda m: torch.cat(m(image, tokens)[:2])),
        "open_clip AttentionalPooler": (
            lambda: library("open_clip").transformer.AttentionalPooler(24, 24, n_head=3, n_queries=5),
            lambda m: m(memory),
        ),
        "SigLIP's pooling head": (
            lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**tiny.VISION)).head,
            lambda m: m(x),
        ),
    }
    for name, (build, run) in users.items():
        with torch_mha_cases.fast_path(True):
            yield measure("torch", name, lambda build=build: build().eval(), run, torch_literal)


@contextmanager
def torch_literal(model: nn.Module) -> Iterable[None]:
    with torch_mha_cases.fast_path(False), torch_mha_cases.literal_by_weights(model):
        yield


def diffusers_rows() -> Iterable[Row]:
    for family in diffusers_cases.FAMILIES:
        model, inputs = diffusers_cases.build(family)
        run = lambda m, inputs=inputs: diffusers_cases.output(m, inputs)  # noqa: E731
        yield measure("diffusers", family, lambda model=model: model, run, test_diffusers.literal)


@contextmanager
def timm_literal(model: nn.Module) -> Iterable[None]:
    test_timm.by_hand(model)
    with literal_mixing(model), model.disable_adapter():
        yield


def timm_class_rows() -> Iterable[Row]:
    for case in timm_cases.CASES:
        host, x, kwargs = timm_cases.build(case)
        run = lambda m, x=x, kwargs=kwargs: m(x, **kwargs)  # noqa: E731
        yield measure("timm class", case, lambda host=host: host, run, timm_literal)


def timm_architectures() -> Iterable[Row]:
    """Every pretrained architecture with attention of several heads, by the classes that it has."""
    timm = library("timm")
    tags = Counter(name.split(".")[0] for name in timm.list_models(pretrained=True))
    for name in sorted(tags):
        with torch.device("meta"):
            model = timm.create_model(name)
        served = Counter(type(m).__name__ for m in model.modules() if find_binder(m) is not None)
        refused = Counter(type(m).__name__ for m in model.modules() if why_refused(m) is not None)
        if served or refused:
            state = ("yes" if not refused else "partly") if served else "no"
            row = {"library": "timm", "family": name, "tags": tags[name], "works": state}
            yield {**row, "classes": sorted(served), "refused": sorted(refused)}


def main() -> None:
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for make in (transformers_rows, torch_rows, diffusers_rows, timm_class_rows, timm_architectures):
        for row in make():
            rows.append(row)
            if row["works"] is False:
                print(row["library"], row["family"], row.get("why", row), flush=True)
        print(f"{make.__name__}: {len(rows)} rows so far", flush=True)
        write(rows)


if __name__ == "__main__":
    main()
