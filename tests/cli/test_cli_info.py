"""`fastpeer info`: what is known of weights and runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from cli_files import STEPS, weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastpeer import __version__
from fastpeer.config.settings import Config
from fastpeer.models import build_model
from fastpeer.run_folder import RunFolder


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def told(shown: str) -> dict[str, str]:
    lines = [line.split("  ", 1) for line in shown.splitlines()]
    return {name.strip(): value.strip() for name, value in lines}


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Weights that were copied out of their run."""
    return Path(shutil.copy(finished / "checkpoints" / "best" / "student.safetensors", tmp_path / "net.bin"))


def test_a_run(fastpeer, original: Path) -> None:
    found = told(fastpeer("info", original).succeeded().out)
    assert found["method"] == "peeraid"
    assert found["student"] == found["peer"] == "resnet8, 77,652 parameters (float32)"
    assert found["classes"] == "4"
    assert found["normalisation"] == "none"
    assert found["data"].startswith("folder (8x8), ")
    assert found["trained for"] == f"{STEPS} steps, 3 of 3 epochs"
    assert "pgd1 " in found["best"]
    assert "held-out training images" in found["accuracies"]
    assert f"fastpeer {__version__}" in found["versions"]
    assert f"torch {torch.__version__}" in found["versions"]


def test_a_step_that_is_no_number_is_not_known(fastpeer, original: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(original, tmp_path / "run"))
    file = run / "checkpoints" / "last" / "state.pt"
    state = torch.load(file, weights_only=True)
    torch.save({**state, "position": {"step": torch.ones(3), "epoch": torch.ones(3)}}, file)
    found = told(fastpeer("info", run).succeeded().out)
    assert found["trained for"] == "not recorded, not recorded of 3 epochs"


def test_without_a_name_it_says_that_it_is_the_newest_run(
    fastpeer, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(original)
    monkeypatch.chdir(tmp_path)
    found = told(fastpeer("info").succeeded().out)
    assert found["chosen"] == "the newest run in runs/, as none was named"
    assert found["run"] == "runs/mine"


@pytest.mark.parametrize("path", ["checkpoints/best", "checkpoints/last/peer.safetensors"])
def test_a_checkpoint_of_a_run(fastpeer, original: Path, path: str) -> None:
    found = told(fastpeer("info", original / path).succeeded().out)
    assert found["run"] == str(original)
    assert found["network"] == "resnet8"
    assert ("accuracy in %" in found) == path.endswith("best")


def test_a_copied_file_tells_what_it_is(fastpeer, copied: Path) -> None:
    found = told(fastpeer("info", copied).succeeded().out)
    assert found["run"] == "none"
    assert (found["network"], found["classes"], found["method"]) == ("resnet8", "4", "peeraid")
    assert found["data"] == "folder (8x8)"
    assert found["normalisation"] == "none recorded"
    assert found["trained for"].endswith(" steps")
    assert found["written by"] == f"fastpeer {__version__}"
    assert found["size"] == "77,652 parameters (float32)"


def test_a_file_of_someone_else_s(fastpeer, tmp_path: Path) -> None:
    broken = build_model("resnet8", 4).state_dict()
    broken["linear.bias"][1] = float("nan")
    torch.save({"state_dict": broken | {"mu": torch.ones(3) / 2, "sigma": torch.ones(3) / 4}, "ema": broken},
               tmp_path / "w.pth")  # fmt: skip
    found = told(fastpeer("info", tmp_path / "w.pth").succeeded().out)
    assert found["network"] == found["classes"] == found["method"] == found["data"] == "not recorded"
    assert found["normalisation"] == "mean 0.5 0.5 0.5 and std 0.25 0.25 0.25"
    assert found["weights"] == "state_dict; others: --weights-key ema"
    assert found["size"].endswith("; NaN or infinity in linear.bias")
    found = told(fastpeer("info --weights-key ema", tmp_path / "w.pth").succeeded().out)
    assert found["normalisation"] == "none recorded"


def test_a_checkpoint_without_symbolic_links_is_found(fastpeer, finished: Path) -> None:
    link = finished / "checkpoints" / "last"
    target = link.readlink()
    link.unlink()
    link.write_text(f"{target}\n", "utf-8")
    assert told(fastpeer("info", link).succeeded().out)["network"] == "resnet8"


def test_a_data_set(fastpeer) -> None:
    lines = fastpeer("info data/photos").succeeded().out.splitlines()
    found = dict(re.split(r"  +", line, maxsplit=1) for line in lines)
    assert found["classes"] == "4"
    assert found["size"] == "8x8"
    assert re.fullmatch(r"\d+ train, \d+ test", found["images"])
    # Nobody's official data set.
    assert "pixels" not in found
    assert "not the official pixels" in fastpeer("info data/cifar10").succeeded().out


def test_a_folder_of_runs_is_told_from_a_run(fastpeer, tmp_path: Path) -> None:
    RunFolder(tmp_path / "mine").create(Config(), {}, force=False)
    for command in ("info", "report", "watch"):
        told = fastpeer(command, tmp_path).refused(str(tmp_path), "a folder of runs: name one, such as ")
        assert told.rstrip().endswith("mine")


def test_what_is_no_weights(fastpeer, tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<!doctype html>", "utf-8")
    fastpeer("info", tmp_path / "page.pth").refused("page.pth", "a web page")
    fastpeer("info", tmp_path).refused(str(tmp_path), "neither a run")
    fastpeer("info", tmp_path / "nosuch").refused("nosuch", "No such file")
    fastpeer("info").refused("no run in runs/")
    fastpeer("inof").refused("did you mean info")


def test_a_run_of_before_that_recorded_less(fastpeer, finished: Path) -> None:
    facts = json.loads((finished / "run.json").read_text("utf-8"))
    data = {name: facts["data"][name] for name in ("folder", "train_sha256")}
    (finished / "run.json").write_text(json.dumps({"data": data}), "utf-8")
    for file in (finished / "checkpoints").glob("*/*.safetensors"):
        save_file(load_file(file), file, metadata={"format": "pt"})
    found = told(fastpeer("info", finished).succeeded().out)
    assert found["versions"] == found["classes"] == "not recorded"
    found = told(fastpeer("info", finished / "checkpoints" / "last").succeeded().out)
    assert found["network"] == "resnet8"
    assert found["trained for"] == f"{STEPS} steps"


def test_metadata(finished: Path) -> None:
    with safe_open(finished / "checkpoints" / "last" / "peer.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "fastpeer.network": '"resnet8"',
            "fastpeer.classes": "4",
            "fastpeer.method": '"peeraid"',
            "fastpeer.dataset": '"folder"',
            "fastpeer.size": "[8, 8]",
            "fastpeer.step": str(STEPS),
            "fastpeer.version": f'"{__version__}"',
        }
    assert len(set(weights(finished).values())) > 1


def test_a_copied_file_is_evaluated_without_naming_its_network(
    fastpeer, finished: Path, copied: Path
) -> None:
    fastpeer("eval", copied).refused("belongs to no run: pass --data DIR\n")
    fastpeer("eval --attacks clean --data data/photos", copied).succeeded()
    found = json.loads(Path(f"{copied}.results.json").read_text("utf-8"))["results"][0]["correct"]
    fastpeer("eval --attacks clean --checkpoints best", finished).succeeded()
    assert found == json.loads((finished / "results.json").read_text("utf-8"))["results"][0]["correct"]


def test_a_zipped_run_is_to_be_unpacked(fastpeer, original: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "run"), "zip", original.parent, original.name)
    fastpeer("info", archive).refused("a zipped run folder: unpack it, and name the folder")
