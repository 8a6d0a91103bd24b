from __future__ import annotations

from pathlib import Path

import pytest

from coeff_tuning import __version__, cli


@pytest.mark.parametrize(
    "command",
    ["train", "predict", "compare", "demo", "bench op", "bench model", "bench plot", "study hull", "study vtab"],
)
def test_help_ends_with_a_worked_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    example = capsys.readouterr().out.rstrip().rpartition("\nexample")[2]
    assert f"coeff-tuning {command}" in example


def test_train_help_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    for flag in ("coeff+dora", "--coeff_learning_rate", "--train_samples_per_class", "--gradient_checkpointing"):
        assert flag in out


def test_top_level(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("train", "predict", "compare", "bench", "study", "demo"))
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["bench"],
        ["bench", "fly"],
        ["study"],
        ["study", "fly"],
        ["train", "paint"],
        ["train", "causal-lm", "--no_such_flag", "1"],
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) < 6


def test_missing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(tmp_path / "none"), "text"]) == 2
    assert "run folder" in capsys.readouterr().err


def test_missing_extra_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from coeff_tuning.errors import MissingDependencyError
    from coeff_tuning.recipes.extras import require

    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'coeff-tuning\[offline\]'"):
        require("onnx")
