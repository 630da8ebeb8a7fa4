"""`fastpeer export`: what it writes, how it is opened without fastpeer, and what it refuses."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_files import snapshot
from safetensors.torch import load_file, save_file

import fastpeer as package
from fastpeer.export import folder as export_folder
from fastpeer.export import formats
from fastpeer.models import build_model, model_names
from fastpeer.models.weight_facts import WeightFacts
from fastpeer.models.weights import save_weights
from tests.models.timms import need_timm

QUICK = "--formats safetensors,pytorch"
LONG = "x" * 300
ARABIC = "قطة"


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(7, 3, 8, 8)


@pytest.fixture
def cifar10_file(tmp_path: Path) -> Path:
    """Weights that were copied out of a run on cifar10."""
    network = build_model("resnet8", 10, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    facts = WeightFacts(network="resnet8", classes=10, dataset="cifar10", size=(8, 8), method="peeraid")
    save_weights(network, tmp_path / "net.safetensors", facts)
    return tmp_path / "net.safetensors"


def opened_by_its_own_file(folder: Path) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("written", folder / "network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder / "model.pth")


def test_a_run(fastpeer, original: Path, workshop: Path, tmp_path: Path, images: torch.Tensor) -> None:
    before = snapshot(original)
    shown = fastpeer(f"export {QUICK} --license mit --to", tmp_path / "out", original).succeeded().out
    assert snapshot(original) == before
    out, run = tmp_path / "out", package.load(original)
    assert "12 test images" in shown
    expected = run(images)
    torch.testing.assert_close(opened_by_its_own_file(out)(images), expected)
    assert torch.equal(package.load(out / "model.safetensors")(images), expected)
    assert json.loads((out / "classes.json").read_text("utf-8")) == ["ant", "bee", "cat", "dog"]
    card = (out / "README.md").read_text("utf-8")
    assert all(
        word in card for word in ("license: mit", "## Measured", "## Limits", "77,652", "fastpeer eval")
    )


def test_python_finds_what_eval_finds(fastpeer, finished: Path, tmp_path: Path) -> None:
    line = "eval --checkpoints best --attacks clean,fgsm,pgd3 --format json"
    ((row,),) = [table["rows"] for table in json.loads(fastpeer(line, finished).succeeded().out)["tables"]]
    stored = json.loads((finished / "results.json").read_text("utf-8"))["results"]
    assert list(row.values())[1:] == [round(entry["accuracy"], 2) for entry in stored]
    found = package.evaluate(package.load(finished), "data/photos", "clean,fgsm,pgd3")
    assert {name: result.correct for name, result in found.items()} == {
        entry["attack"]: entry["correct"] for entry in stored
    }
    fastpeer(f"export {QUICK} --to", tmp_path / "out", finished).succeeded()
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert all(f"| {entry['attack']} | {entry['accuracy']:.2f} |" in card for entry in stored)


def test_a_claim_for_robustbench(fastpeer, cifar10_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fastpeer("eval --data data/cifar10 --attacks clean", cifar10_file).succeeded()
    fastpeer("export --formats robustbench --to", out, cifar10_file).succeeded()
    claim = json.loads((out / "model_info.json").read_text("utf-8"))
    stored = json.loads(Path(f"{cifar10_file}.results.json").read_text("utf-8"))["results"]
    assert claim["clean_acc"] == f"{stored[0]['accuracy']:.2f}"
    assert (claim["dataset"], claim["eps"], claim["autoattack_acc"]) == ("cifar10", "8/255", "")
    assert claim["authors"] == ""
    # Its loader takes "state_dict" and loads it into the class, normalisation inside.
    state = torch.load(out / "model.pth", weights_only=True)["state_dict"]
    assert state["mean"].flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert torch.equal(state["network.conv1.weight"], load_file(cifar10_file)["conv1.weight"])


@pytest.mark.parametrize("name", [*model_names()[:4], "wideresnet10x1", *model_names()[4:6], "mobilenetv2"])
def test_the_network_file_needs_no_fastpeer(name: str) -> None:
    opened = formats.OpenedNetwork(None, name, 10, (8, 8), ((), ()), None, "")
    source = formats.network_source(opened)
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert {module.partition(".")[0] for module in imported} <= {"collections", "functools", "torch"}
    namespace: dict[str, object] = {}
    with torch.device("meta"):
        exec(source, namespace)
        network = namespace["Classifier"]()
        expected = build_model(name, 10).state_dict()
    found = {key: value.shape for key, value in network.network.state_dict().items()}
    assert found == {key: value.shape for key, value in expected.items()}


def test_a_class_of_ones_own(fastpeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "exported_nets.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(192, num_classes))\n"
    )
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    save_weights(network, tmp_path / "own.safetensors",
                 WeightFacts(network="exported_nets:Net", classes=4, size=(8, 8)))  # fmt: skip
    line = f"export {QUICK} --to"
    fastpeer(line, tmp_path / "out", tmp_path / "own.safetensors").refused("--model exported_nets:Net")
    assert "exported_nets" not in sys.modules
    try:
        words = [tmp_path / "out", tmp_path / "own.safetensors", "--model", "exported_nets:Net"]
        shown = fastpeer(line, *words).succeeded().out
        assert "random images" in shown
        torch.testing.assert_close(opened_by_its_own_file(tmp_path / "out")(images), network(images))
    finally:
        sys.modules.pop("exported_nets", None)


def test_a_run_that_names_code_is_not_trusted(fastpeer, finished: Path, tmp_path: Path) -> None:
    config = finished / "config.toml"
    text = config.read_text("utf-8").replace('student = "resnet8"', 'student = "boom:Net"')
    config.write_text(text, "utf-8")
    fastpeer(f"export {QUICK} --force-settings --to", tmp_path / "out", finished).refused(
        "boom:Net", "--trust"
    )
    assert not (tmp_path / "out").exists()


def test_names_of_classes_may_be_anything(fastpeer, original: Path, workshop: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(workshop / "data" / "photos", data)
    described = json.loads((data / "dataset.json").read_text("utf-8"))
    described["classes"] = [LONG, ARABIC, "a|b\u202e", "# x"]
    (data / "dataset.json").write_text(json.dumps(described), "utf-8")
    fastpeer(f"export {QUICK} --to", tmp_path / "out", original, "--data", data).succeeded()
    names = json.loads((tmp_path / "out" / "classes.json").read_text("utf-8"))
    assert names == described["classes"]
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert ARABIC in card
    assert LONG not in card
    assert "\u202e" not in card


def test_an_existing_folder_is_kept(fastpeer, original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for words in ([], ["--force"]):
        fastpeer(f"export {QUICK} --to", out, original, *words).refused("is no export of fastpeer's")
    (out / "mine.txt").unlink()
    fastpeer(f"export {QUICK} --to", tmp_path / "new", original).succeeded()
    before = snapshot(tmp_path / "new")
    assert not (tmp_path / "new" / "__pycache__").exists()
    fastpeer(f"export {QUICK} --to", tmp_path / "new", original).refused("--force replaces it")
    assert snapshot(tmp_path / "new") == before
    fastpeer("export --formats safetensors --force --to", tmp_path / "new", original).succeeded()
    assert "model.pth" not in snapshot(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_other_logits_are_not_kept(fastpeer, original: Path, tmp_path: Path, monkeypatch) -> None:
    form = formats.FORMATS["pytorch"]
    reopened = formats.ExportFormat(
        form.files, form.write, lambda opened, at: lambda images: opened.network(images) + 1
    )
    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS, "pytorch": reopened})
    fastpeer(f"export {QUICK} --to", tmp_path / "out", original).refused("gives other logits", "got 1.0e+00")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported(fastpeer, original: Path, tmp_path: Path, monkeypatch) -> None:
    def fails(opened, at):
        raise RuntimeError("an operator\nthat nobody knows")

    form = formats.ExportFormat({}, fails, fails)
    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS, "program": form})
    words = ("resnet8 cannot be exported as program", "operator that nobody knows", "safetensors,pytorch")
    fastpeer("export --formats safetensors,program --to", tmp_path / "out", original).refused(*words)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(fastpeer, original: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    told = "pip install 'fastpeer[onnx]' installs it"
    fastpeer("export --formats onnx --to", tmp_path / "out", original).refused("onnxruntime", told)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("export --to out nosuch", "nosuch: neither a run folder nor a file with weights"),
        ("export --formats onyx --to out RUN", "unknown format onyx"),
        ("export --formats robustbench --to out RUN", "this one was trained on"),
        ("export --checkpoint bst --to out RUN", "unknown checkpoint bst"),
        ("export --data data/cifar10 --to out RUN", "must have 4 classes, got 10"),
        ("export RUN", "--to is required"),
        ("export --to tiny.toml RUN", "tiny.toml is not a folder"),
        ("export --to out data", "data: neither a run folder"),
    ],
)
def test_wrong_words(fastpeer, original: Path, workshop: Path, line: str, told: str) -> None:
    fastpeer(line.replace("RUN", str(original))).refused(told)
    assert not (workshop / "out").exists()


def test_a_full_disk_leaves_nothing(fastpeer, original: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_folder, "model_card", full)
    fastpeer(f"export {QUICK} --to", tmp_path / "out", original).refused("No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_onnx_runs_in_onnxruntime(fastpeer, cifar10_file: Path, tmp_path: Path, images) -> None:
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    fastpeer("export --formats onnx --to", tmp_path / "out", cifar10_file).succeeded()
    file = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    network = package.load(cifar10_file)
    for count in (1, 2, 7):
        (logits,) = session.run(None, {"images": images[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(images[:count]), rtol=1e-4, atol=1e-5)


@pytest.mark.soak
def test_a_program_takes_any_number_of_images(fastpeer, cifar10_file: Path, tmp_path: Path, images) -> None:
    fastpeer("export --formats program --to", tmp_path / "out", cifar10_file).succeeded()
    program, network = torch.export.load(tmp_path / "out" / "model.pt2").module(), package.load(cifar10_file)
    for count in (1, 2, 7):
        torch.testing.assert_close(program(images[:count]), network(images[:count]))


@pytest.mark.soak
def test_the_plain_file_runs_where_fastpeer_is_not(fastpeer, original: Path, tmp_path: Path) -> None:
    fastpeer(f"export {QUICK} --to", tmp_path / "out", original).succeeded()
    code = (
        "import sys; sys.modules['fastpeer'] = None; import torch; from network import load;"
        "print(load()(torch.zeros(2, 3, 8, 8)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, text=True, env={}
    )
    assert done.stdout == "torch.Size([2, 4])\n", done.stderr


@pytest.mark.soak
def test_timms_networks_are_exported(fastpeer, tmp_path: Path) -> None:
    need_timm()
    network = build_model("timm:resnet10t", 4, (32, 32))
    facts = WeightFacts(network="timm:resnet10t", classes=4, size=(32, 32))
    save_file(network.state_dict(), tmp_path / "net.safetensors", metadata=facts.metadata())
    fastpeer(f"export {QUICK} --to", tmp_path / "out", tmp_path / "net.safetensors").succeeded()
