from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from coeff_tuning import cli
from coeff_tuning.errors import RunError
from coeff_tuning.recipes.trainer import coeff_parameters
from coeff_tuning.studies import rows
from coeff_tuning.studies.vtab import report, training
from coeff_tuning.studies.vtab import study as vtab_study
from coeff_tuning.studies.vtab.model import Classifier, build
from coeff_tuning.studies.vtab.recipes import BASES, RECIPES
from coeff_tuning.studies.vtab.tasks import CLASSES, GROUP_OF

MODEL = "test_vit"  # timm's own: 6 blocks of 2 heads, width 64
COEFFICIENTS = 6 * 2 * 2
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def argv(root: Path, folder: Path, *flags: str) -> list[str]:
    fixed = ["--model", MODEL, "--no-pretrained", "--epochs", "1", "--workers", "0", "--tasks", "kitti"]
    return ["study", "vtab", "--root", str(root), "--output_dir", str(folder), *fixed, *flags]


def options(**changes: Any) -> training.Options:
    return training.Options(**{"model": MODEL, "pretrained": False, "epochs": 1, "workers": 0, **changes})


def classifier(method: str) -> Classifier:
    torch.manual_seed(0)
    return build(MODEL, 4, method, RECIPES[method].settings, 0.1, pretrained=False)


def test_every_method_trains(vtab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv(vtab, tmp_path, "--methods", "all", "--no-search")) == 0
    found = rows.read(tmp_path / "rows.jsonl", "vtab")
    assert [row["method"] for row in found] == list(RECIPES)
    assert len(found) == 14
    extra = {row["method"]: row["extra_parameters"] for row in found}
    assert extra["linear"] == 0
    assert extra["coeff"] == COEFFICIENTS
    assert extra["lora"] == 6 * 8 * (64 + 3 * 64)
    for base in list(BASES)[1:]:
        assert extra[f"coeff+{base}"] == extra[base] + COEFFICIENTS
        assert extra[base] > 0
    for row in found:
        assert row["head_parameters"] == 64 * 4 + 4
        assert (row["train_images"], row["heldout_images"]) == (12, 6)
        assert row["accuracy"] * 6 == pytest.approx(round(row["accuracy"] * 6))
        assert (row["task"], row["group"], row["seed"], row["normalise"]) == ("kitti", "structured", 0, "imagenet")
        assert row["recipe"]["learning_rate"] == RECIPES[row["method"]].learning_rate
        assert row["settings"] == RECIPES[row["method"]].settings
        assert row["versions"]["torch"]
        assert 0 < row["train_loss"] < 10
    assert not (tmp_path / "search.jsonl").exists()
    printed = capsys.readouterr().out
    assert "[14/14] kitti, coeff+vpt, seed 0" in printed
    assert "(1 of 19)" in printed
    assert "test_vit (random weights), normalisation: imagenet, no search, 1 epochs" in " ".join(printed.split())
    assert (tmp_path / "summary.md").read_text().count("| kitti |") == 1
    assert "| cifar |" not in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("method", RECIPES)
def test_start_and_what_moves(method: str) -> None:
    """Every method but prompts starts as the base; one step moves what is trained and nothing else."""
    model, x = classifier(method).eval(), torch.randn(2, 3, 160, 160)
    base = classifier("linear").eval()
    model.load_state_dict({key: value for key, value in base.state_dict().items() if "head" in key}, strict=False)
    head = model.model.get_base_model().head if hasattr(model.model, "get_base_model") else model.model.head
    head.load_state_dict(base.model.head.state_dict())
    same = torch.allclose(model(x)["logits"], base(x)["logits"], atol=1e-5)
    assert same == ("vpt" not in method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # a product with a factor that starts at zero moves in the second step
        optimizer.zero_grad()
        model(x, torch.tensor([1, 3]))["loss"].backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    assert len(coeff_parameters(model)) == (6 if "coeff" in method else 0)


def test_learning_rates() -> None:
    """Coefficients have their own; both warm up and fall by the same factors."""
    seen: list[list[float]] = []
    trainer = training._trainer(
        classifier("coeff+lora"),
        "unused",
        training.Job("kitti", "coeff+lora", 0),
        {"coeff_learning_rate": 0.05},
        (list(range(640)), []),
        options(epochs=None),
    )
    trainer.create_optimizer_and_scheduler(1000)
    for _ in range(1000):
        seen.append([group["lr"] for group in trainer.optimizer.param_groups if group["params"]])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    first, top, last = seen[0], max(seen), seen[999]
    assert seen.index(top) == 99
    assert first[0] == pytest.approx(1e-6)
    assert (top[0], top[-1]) == pytest.approx((5e-3, 0.05))
    assert last[0] == pytest.approx(1e-5)
    assert last[-1] / top[-1] == pytest.approx(last[0] / top[0])


def test_search_then_final_and_going_on(
    vtab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is killed in its search; started again, it does what is missing and nothing twice."""
    done: list[tuple[Any, ...]] = []
    scores = {1e-3: 0.25, 1e-2: 0.75, 5e-2: 0.75}

    def fit(job: training.Job, settings: dict[str, float], lists: tuple[Any, Any], given: Any) -> dict[str, Any]:
        if len(done) == 2 and not monkeypatch_is_over:
            raise KeyboardInterrupt
        names = tuple(Path(part[0]["where"].split(",")[0]).stem for part in lists)
        done.append((job.seed, settings["coeff_learning_rate"], names))
        return {"accuracy": scores[settings["coeff_learning_rate"]], "extra_parameters": 24}

    monkeypatch_is_over: list[int] = []
    monkeypatch.setattr(vtab_study, "fit", fit)
    command = argv(vtab, tmp_path, "--methods", "coeff", "--seeds", "0,1")
    assert cli.main(command) == 130
    assert len(done) == 2
    monkeypatch_is_over.append(1)
    assert cli.main(command) == 0
    search, final = ("train800", "val200"), ("train800val200", "test")
    rates = [1e-3, 1e-2, 5e-2]
    expected = [[*((seed, rate, search) for rate in rates), (seed, 1e-2, final)] for seed in (0, 1)]
    assert done == [entry for part in expected for entry in part]
    assert cli.main(command) == 0
    assert len(done) == 8
    assert capsys.readouterr().out.count(": done") == 2
    found = rows.read(tmp_path / "rows.jsonl", "vtab")
    assert [(row["seed"], row["val200"], row["settings"]) for row in found] == [
        (seed, 0.75, {"coeff_learning_rate": 1e-2}) for seed in (0, 1)
    ]
    assert len(rows.read(tmp_path / "search.jsonl", "vtab")) == 6
    assert cli.main([*command, "--normalise", "half"]) == 2
    assert "rows.jsonl was made with normalise 'imagenet', now it is 'half'" in capsys.readouterr().err
    assert len(done) == 8


def test_same_seed_same_accuracy_and_loss(vtab: Path) -> None:
    from coeff_tuning.studies.vtab import data

    lists = tuple(data.read_list(vtab, "kitti", split) for split in ("train800", "test"))
    job = training.Job("kitti", "coeff", 3)
    first, second = (training.fit(job, RECIPES["coeff"].settings, lists, options()) for _ in range(2))
    first.pop("seconds"), second.pop("seconds")
    assert first == second


def test_broken_image_is_found_before_training(kitti: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kitti / "kitti" / "images" / "17.png").write_bytes(b"not an image")
    assert cli.main(argv(kitti, tmp_path / "out", "--methods", "linear")) == 2
    captured = capsys.readouterr()
    assert "test.txt, line 6: image" in captured.err
    assert "[1/1]" not in captured.out
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(vtab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["--methods", "magic"], "--methods must be 'all' or some of linear, coeff, lora, coeff+lora"),
        (["--epochs", "0"], "--epochs must be at least 1; got 0"),
        (["--methods", "linear", "--model", "vit_of_no_kind"], "--model 'vit_of_no_kind' cannot be made by timm: "),
        (["--methods", "fact", "--model", "test_resnet"], "must be a vision transformer of timm"),
    ):
        assert cli.main([*argv(vtab, tmp_path / "out", "--no-search"), *flags]) == 2
        assert message in capsys.readouterr().err


def test_both_means() -> None:
    """Plain mean over 19 tasks, and the mean of three groups of 7, 4 and 8."""
    made = []
    for number, task in enumerate(CLASSES):
        for seed, shift in ((0, -0.01), (1, 0.01)):
            score = {"natural": 0.9, "specialized": 0.6, "structured": 0.3}[GROUP_OF[task]] + number / 1000 + shift
            made.append({"task": task, "method": "coeff", "seed": seed, "accuracy": score, "extra_parameters": 1728})
    header, (line,) = report.summary(made)
    assert dict(zip(header, line, strict=True)) == {
        "method": "coeff",
        "seeds": "2",
        "numbers": "1,728",
        "natural": "90.30",
        "specialized": "60.85",
        "structured": "31.45",
        "mean": "59.32",
        "of groups": "60.87",
    }
    _, (part,) = report.summary([row for row in made if row["task"] != "dtd"])
    assert part[3:] == ["90.32 (6 of 7)", "60.85", "31.45", "57.61 (18 of 19)", ""]


def test_a_half_written_row_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are replaced at once: a full disk leaves the former file."""
    path = tmp_path / "rows.jsonl"
    rows.write(path, [{"study": "vtab"}])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coeff_tuning.studies.rows.os.replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        rows.write(path, [{"study": "vtab"}] * 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"study": "vtab"}]
