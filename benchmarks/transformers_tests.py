"""transformers' own common tests, before and after coefficients are attached, at the identity, to every model.

pip install parameterized
python benchmarks/transformers_tests.py bert llama  # families of tests/tiny.py; all of FAMILIES if none is named

The tests come with the source distribution of the installed version, fetched by pip into a temporary folder. It has the
common tests, not those of each family, so tiny models stand in for the families' own. A test counts that passes before.
The coefficients are the identity to 1e-30, so that our own kernels run and not the shortcut for a known identity.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import logging
import re
import subprocess
import sys
import tarfile
import tempfile
import unittest
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import inject_adapter_in_model
from torch import nn

from coeff_tuning import CoeffConfig, CoeffLayer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests import tiny  # noqa: E402

# Model classes to test beside the one of tests/tiny.py.
FAMILIES: dict[str, tuple[type[nn.Module], ...]] = {
    "bert": (tf.BertModel, tf.BertForMaskedLM, tf.BertForSequenceClassification),
    "roberta": (tf.RobertaModel, tf.RobertaForTokenClassification),
    "distilbert": (tf.DistilBertModel, tf.DistilBertForMaskedLM),
    "electra": (tf.ElectraModel, tf.ElectraForQuestionAnswering),
    "vit": (tf.ViTModel, tf.ViTForImageClassification),
    "deit": (tf.DeiTModel, tf.DeiTForImageClassification),
    "dinov2": (tf.Dinov2Model, tf.Dinov2ForImageClassification),
    "gpt2": (tf.GPT2Model, tf.GPT2LMHeadModel),
    "opt": (tf.OPTModel, tf.OPTForCausalLM),
    "llama": (tf.LlamaModel, tf.LlamaForCausalLM, tf.LlamaForSequenceClassification),
    "mistral": (tf.MistralModel, tf.MistralForCausalLM),
    "qwen2": (tf.Qwen2Model, tf.Qwen2ForCausalLM),
    "gemma2": (tf.Gemma2Model, tf.Gemma2ForCausalLM),
    "t5": (tf.T5Model, tf.T5ForConditionalGeneration),
    "bart": (tf.BartModel, tf.BartForConditionalGeneration),
    "whisper": (tf.WhisperModel, tf.WhisperForConditionalGeneration),
    "wav2vec2": (tf.Wav2Vec2Model, tf.Wav2Vec2ForCTC),
}
TESTS = re.compile(
    "test_(eager_matches|attention_outputs|hidden_states_output|retain_grad|determinism|batching_equivalence|training"
    "|model_outputs_equivalence|inputs_embeds|feed_forward_chunking|sliding_window_mask|can_set_attention_dynamically"
    "|config_attn_implementation_setter|causal_lm_loss|encoder_decoder_loss|torch_save_load|save_load$|problem_types"
    "|resize_tokens_embeddings$|enable_input_require_grads|gradient_checkpointing|capture_outputs|can_capture)"
)
STUBS = {"exporters/test_export.py": "ExportTesterMixin", "generation/test_utils.py": "GenerationTesterMixin"}


def fetch(folder: Path) -> Any:
    """Their module of common tests; what it imports from parts that are not distributed is empty."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps"]
    subprocess.run([*command, "--dest", folder, f"transformers=={tf.__version__}"], check=True)
    with tarfile.open(next(folder.glob("transformers-*.tar.gz"))) as archive:
        archive.extractall(folder, [m for m in archive.getmembers() if "/tests/" in m.name], filter="data")
    tests = next(folder.glob("transformers-*/tests"))
    package = tests.rename(folder / "transformers_common")
    for name, mixin in STUBS.items():
        (package / name).parent.mkdir()
        (package / name).write_text(f"class {mixin}:\n    pass\n")
    sys.path.insert(0, str(folder))
    return importlib.import_module("transformers_common.test_modeling_common")


def attach(model: nn.Module) -> None:
    inject_adapter_in_model(CoeffConfig(coeff_dropout=0.0, allow_unused=True), model)
    layers = [module for module in model.modules() if isinstance(module, CoeffLayer)]
    assert layers
    for layer in layers:
        nn.init.constant_(layer.coeff_delta["default"], 1e-30)
    model.requires_grad_(True)


def with_coefficients(base: type[nn.Module]) -> type[nn.Module]:
    """A class of the same name whose models, new or loaded, have coefficients."""

    class Adapted(base):  # type: ignore[misc, valid-type]
        is_loading = False

        @functools.wraps(base.__init__)
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if not Adapted.is_loading:
                attach(self)

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            Adapted.is_loading = True
            try:
                out = super().from_pretrained(*args, **kwargs)
            finally:
                Adapted.is_loading = False
            attach(out[0] if isinstance(out, tuple) else out)
            return out

    Adapted.__name__, Adapted.__qualname__, Adapted.__module__ = base.__name__, base.__qualname__, base.__module__
    return Adapted


class Tester:
    """What their tests ask for a config, inputs and sizes."""

    is_training = True

    def __init__(self, family: str) -> None:
        model, self.inputs = tiny.build(family)
        self.config = model.config
        self.batch_size = 2
        self.hidden_size, self.num_hidden_layers = 24, 2
        self.num_attention_heads = getattr(self.config, "num_attention_heads", 3)
        decoder = self.inputs.get("decoder_input_ids")
        self.seq_length = self.encoder_seq_length = 7
        if "pixel_values" in self.inputs:
            self.image_size, self.patch_size = 14, 7
            self.mask_length, self.num_masks = 4, 2
            self.seq_length = self.encoder_seq_length = 6 if family == "deit" else 5
        if decoder is not None:
            self.decoder_seq_length = decoder.shape[1]
        if family == "whisper":
            self.seq_length = self.encoder_seq_length = 10

    def get_config(self) -> Any:
        """A config that a test may change."""
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        """The same, with inputs."""
        return self.get_config(), copy.deepcopy(self.inputs)

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


def results(module: Any, family: str, is_adapted: bool) -> dict[str, str]:
    """Of each test, "passed", "skipped" or the last line of its error."""
    classes = tuple(with_coefficients(c) if is_adapted else c for c in FAMILIES[family])

    class Case(module.ModelTesterMixin, unittest.TestCase):  # type: ignore[misc, name-defined]
        all_model_classes = classes
        is_encoder_decoder = "decoder_input_ids" in tiny.build(family)[1]
        test_resize_embeddings = "input_ids" in tiny.build(family)[1]

        def setUp(self) -> None:
            self.model_tester = Tester(family)

    names = [name for name in dir(Case) if TESTS.match(name) and callable(getattr(Case, name))]
    found = unittest.TestResult()
    for name in names:
        Case(name).run(found)
    bad = {test._testMethodName: text.strip().splitlines()[-1] for test, text in found.failures + found.errors}
    skipped = {test._testMethodName for test, _ in found.skipped}
    return {name: bad.get(name, "skipped" if name in skipped else "passed") for name in names}


def main() -> None:
    warnings.simplefilter("ignore")
    tf.logging.set_verbosity(logging.CRITICAL)
    total = kept = 0
    with tempfile.TemporaryDirectory() as folder:
        module = fetch(Path(folder))
        for family in sys.argv[1:] or FAMILIES:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                torch.manual_seed(0)
                before, after = (results(module, family, is_adapted) for is_adapted in (False, True))
            counted = [name for name, outcome in before.items() if outcome == "passed"]
            lost = [name for name in counted if after[name] != "passed"]
            total, kept = total + len(counted), kept + len(counted) - len(lost)
            failed = sum(outcome not in ("passed", "skipped") for outcome in before.values())
            print(f"{family}: {len(counted) - len(lost)} of {len(counted)} (before: {failed} fail)", flush=True)
            for name in lost:
                print(f"  {name}: {after[name]}", flush=True)
    print(f"all: {kept} of {total}")


if __name__ == "__main__":
    main()
