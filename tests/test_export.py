"""torch.export and ONNX: equal outputs for other batch sizes, coefficients inside, nothing of this package needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.export import Dim

from coeff_tuning import CoeffConfig, coeff_attention
from coeff_tuning.errors import UnsupportedError
from tests import tiny
from tests.binders.test_timm import whole
from tests.ops.attention_cases import NAMED

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
BATCH, LENGTH = Dim("batch"), Dim("length", max=32)
pytestmark = [
    pytest.mark.slow,
    # Between torch's exporter and its libraries.
    pytest.mark.filterwarnings("ignore"),
]


class Case:
    """An adapted model, inputs to trace with, inputs of other sizes to run, and which sizes may change."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor], others: dict[str, Tensor], sizes: Any) -> None:
        self.peft_model: PeftModel = tiny.randomise(get_peft_model(model, CoeffConfig()).eval())
        self.model = self.peft_model.get_base_model()
        self.inputs, self.others, self.shapes = inputs, others, dict.fromkeys(inputs, sizes)

    def program(self, strict: bool = False) -> torch.export.ExportedProgram:
        return torch.export.export(self.model, (), self.inputs, dynamic_shapes=self.shapes, strict=strict)

    def output(self, model: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            out = model(**inputs)
        return out if isinstance(out, Tensor) else out.get("logits", out.get("last_hidden_state"))


def text(family: str) -> Case:
    model, inputs = tiny.build(family)
    model.config.use_cache = False
    mask = torch.ones(5, 11, dtype=torch.int64)
    mask[1, :3] = 0
    others = {"input_ids": torch.randint(3, 61, (5, 11)), "attention_mask": mask}
    return Case(model, inputs, others, {0: BATCH, 1: LENGTH})


def images(model: nn.Module, name: str, size: int) -> Case:
    pixels = torch.randn(7, 3, size, size)
    return Case(model, {name: pixels[:2]}, {name: pixels[2:]}, {0: BATCH})


def ops_of_ours(program: torch.export.ExportedProgram) -> list[str]:
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    targets = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}
    return sorted(target for target in targets if "coeff_tuning" in target)


class Encoder(nn.Module):
    """torch's own multi-head attention, with a name for its input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 20, batch_first=True), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


CASES: dict[str, Callable[[], Case]] = {
    "vit": lambda: images(tiny.build("vit")[0], "pixel_values", 14),
    "bert": lambda: text("bert"),
    "llama": lambda: text("llama"),
    "timm": lambda: images(whole("vit_tiny_patch16_224"), "x", 32),
    "torch": lambda: Case(
        Encoder(), {"x": torch.randn(2, 5, 24)}, {"x": torch.randn(3, 11, 24)}, {0: BATCH, 1: LENGTH}
    ),
}


@pytest.mark.parametrize(("name", "strict"), [*((name, False) for name in CASES), ("vit", True), ("timm", True)])
def test_program_equals_the_model_and_holds_the_coefficients(name: str, strict: bool) -> None:
    case = CASES[name]()
    program = case.program(strict)
    assert not ops_of_ours(program)
    run = program.module()
    for inputs in (case.inputs, case.others):
        torch.testing.assert_close(case.output(run, inputs), case.output(case.model, inputs), **TOLERANCE)
    former = case.output(run, case.others)
    for model in (run, case.model):
        tiny.randomise(model, seed=5)
    torch.testing.assert_close(case.output(run, case.others), case.output(case.model, case.others), **TOLERANCE)
    assert (case.output(run, case.others) - former).abs().max() > 1e-3


def to_onnx(case: Case) -> Callable[..., Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    options = {"dynamo": True, "verbose": False, "dynamic_shapes": case.shapes}
    program = torch.onnx.export(case.model, kwargs=case.inputs, **options)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    return lambda **inputs: torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])


@pytest.mark.parametrize("name", ["vit", "bert", "timm"])
def test_onnx_equals_the_model(name: str) -> None:
    case = CASES[name]()
    run = to_onnx(case)
    for inputs in (case.inputs, case.others):
        torch.testing.assert_close(case.output(run, inputs), case.output(case.model, inputs), **TOLERANCE)
    with case.peft_model.disable_adapter():
        assert (case.output(case.model, case.others) - case.output(run, case.others)).abs().max() > 1e-3


def test_onnx_holds_the_coefficients_of_its_export() -> None:
    case = CASES["vit"]()
    before = case.output(to_onnx(case), case.others)
    tiny.randomise(case.model, seed=5)
    after = case.output(to_onnx(case), case.others)
    torch.testing.assert_close(after, case.output(case.model, case.others), **TOLERANCE)
    assert (after - before).abs().max() > 1e-3


def test_saved_program_runs_without_this_package(tmp_path: Path) -> None:
    case = CASES["torch"]()
    torch.export.save(case.program(), tmp_path / "program.pt2")
    torch.save((case.others, case.output(case.model, case.others)), tmp_path / "expected.pt")
    code = (
        "import sys, torch\n"
        "inputs, expected = torch.load('expected.pt')\n"
        "out = torch.export.load('program.pt2').module()(**inputs)\n"
        "torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)\n"
        "assert not {'coeff_tuning', 'peft'} & set(sys.modules)\n"
        "print('ok')"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "ok", done.stderr


class Call(nn.Module):
    """The op alone."""

    def __init__(self, backend: str | None = None) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, **inputs: Any) -> Tensor:
        return coeff_attention(**inputs, backend=self.backend)


@pytest.mark.parametrize("name", NAMED)
def test_op_in_every_form_is_plain_torch(name: str) -> None:
    inputs = NAMED[name].inputs()
    program = torch.export.export(Call(), (), inputs)
    assert not ops_of_ours(program)
    if not inputs.get("dropout_p"):
        torch.testing.assert_close(program.module()(**inputs), coeff_attention(**inputs, backend="reference"))


def test_named_backend_is_kept_and_one_that_refuses_raises() -> None:
    inputs = {key: x.float() if isinstance(x, Tensor) else x for key, x in NAMED["plain"].inputs().items()}
    program = torch.export.export(Call("chunked"), (), inputs)
    assert ops_of_ours(program) == ["coeff_tuning.chunked_attention.default"]
    torch.testing.assert_close(program.module()(**inputs), coeff_attention(**inputs, backend="reference"))
    with pytest.raises(UnsupportedError, match="'decode' cannot serve this call: is for at most 4 queries, got 5"):
        torch.export.export(Call("decode"), (), inputs)
