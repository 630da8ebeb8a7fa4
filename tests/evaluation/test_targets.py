"""The weights that a path stands for, and their evaluation from end to end."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from fastpeer.checkpoint import save_checkpoint
from fastpeer.config import Config, ModelConfig
from fastpeer.data.dataset import open_dataset
from fastpeer.errors import UserError
from fastpeer.evaluation import protocol as evaluation_protocol
from fastpeer.evaluation.hidden_gradients import ZERO
from fastpeer.evaluation.protocol import Protocol
from fastpeer.evaluation.targets import find_targets
from fastpeer.files import file_sha256
from fastpeer.models import build_model
from fastpeer.models.normalized import normalization
from fastpeer.models.weights import save_weights
from fastpeer.run_folder import RunFolder
from tests.evaluation.test_hidden_gradients import Rounding

CONFIG = Config(model=ModelConfig(student="resnet8", peer="resnet8"))


@pytest.fixture
def run(tmp_path, small_dataset):
    """A run with all checkpoints; its average holds one model."""
    folder = RunFolder(tmp_path / "runs" / "trained")
    folder.create(CONFIG, {"data": {"folder": str(small_dataset), "train_sha256": ""}}, force=False)
    save_last(folder, measured=True)
    for name in ("best", "best-swa"):
        save_checkpoint(folder.checkpoints, name, 1, {"student": build_model("resnet8", 5)}, {})
    return folder


@pytest.fixture
def lone_file(run, tmp_path):
    """Weights outside any run."""
    return (run.checkpoints / "best/student.safetensors").rename(tmp_path / "alone.safetensors")


def save_last(run, measured):
    networks = {name: build_model("resnet8", 5) for name in ("student", "peer", "swa")}
    save_checkpoint(run.checkpoints, "last", 1, networks, {"swa_measured": measured})


def names(run, checkpoints="all"):
    return [
        target.label.removeprefix(f"{run.path.name} ") for target in find_targets([run.path], checkpoints)
    ]


def test_run_folder_stands_for_all_its_checkpoints_or_for_the_named_ones(run):
    assert names(run) == ["last", "swa", "best", "best-swa"]
    assert names(run, "best, last") == ["best", "last"]


def test_average_of_no_model_is_left_out(run):
    save_last(run, measured=False)
    assert names(run) == ["last", "best", "best-swa"]
    with pytest.raises(UserError, match="holds no checkpoint swa"):
        find_targets([run.path], "swa")


@pytest.mark.parametrize("path", ["checkpoints/best", "checkpoints/best/student.safetensors"])
def test_checkpoint_folder_and_weight_file_belong_to_the_run_around_them(run, path):
    (target,) = find_targets([run.path / path], "all")
    assert target.weights.samefile(run.checkpoints / "best/student.safetensors")
    assert target.run == run
    assert target.config == CONFIG
    assert target.label == str(run.path / path)


def test_weight_file_outside_a_run_stands_alone(lone_file):
    (target,) = find_targets([lone_file], "all")
    assert (target.weights, target.run, target.config) == (lone_file, None, None)


def test_a_manifest_beside_lone_weights_may_be_of_anything(lone_file):
    (lone_file.parent / "manifest.json").write_text('{"name": "of a web page"}')
    assert len(find_targets([lone_file], "all")) == 1


def test_nothing_to_evaluate_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="neither a run folder nor a file"):
        find_targets([tmp_path / "absent"], "all")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="data is a prepared data set: name a run"):
        find_targets([tmp_path / "data"], "all")
    with pytest.raises(UserError, match=r"unknown checkpoint bset; did you mean .*best"):
        find_targets([run.path], "bset")
    empty = RunFolder(tmp_path / "empty")
    empty.create(CONFIG, {}, force=False)
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        find_targets([empty.path], "all")


def evaluating(target, attacks, data=None, model="", examples=0, **numbers):
    @contextmanager
    def unwatched(what, images):
        yield lambda done, stage="": None

    protocol = Protocol(attacks, examples, 8 / 255, 2 / 255, 0, 3, torch.device("cpu"), **numbers)
    return protocol.run(target, data, model, unwatched)


def evaluate(path, attacks, data=None, model="", examples=0, **numbers):
    return list(evaluating(find_targets([path], "best")[0], attacks, data, model, examples, **numbers))


def test_evaluation_attacks_all_or_some_test_images_of_the_runs_own_data(run, small_dataset):
    clean, pgd = evaluate(run.path, ["clean", "pgd2"])
    assert (clean.attack, clean.images, clean.total, clean.dataset) == ("clean", 5, 5, "folder")
    assert (pgd.attack, pgd.images, pgd.total, pgd.dataset) == ("pgd2", 5, 5, "folder")
    assert pgd.correct <= clean.correct
    (sample,) = evaluate(run.path, ["clean"], data=small_dataset, examples=2)
    assert (sample.images, sample.total, sample.weights_sha256) == (2, 5, clean.weights_sha256)


def test_the_checksum_is_of_the_weights_that_were_attacked(run, small_dataset, monkeypatch):
    """A run that trains on replaces its checkpoint while it is loaded, and again while it is attacked."""
    loading, loads = evaluation_protocol.load_weights, []

    def load(network, path, *rest):
        loading(network, path, *rest)
        loads.append(file_sha256(path))
        if len(loads) == 1:
            save_last(run, measured=True)

    monkeypatch.setattr(evaluation_protocol, "load_weights", load)
    (target,) = find_targets([run.path], "last")
    for result in evaluating(target, ["clean", "pgd1"]):
        assert result.weights_sha256 == loads[1] != loads[0]
        save_last(run, measured=True)
    assert len(loads) == 2


def test_weights_outside_a_run_need_data_and_a_network(lone_file, small_dataset):
    with pytest.raises(UserError, match="belongs to no run: pass --data DIR and --model NAME"):
        evaluate(lone_file, ["clean"])
    with pytest.raises(UserError, match="name its network with --model"):
        evaluate(lone_file, ["clean"], data=small_dataset)
    (result,) = evaluate(lone_file, ["clean"], data=small_dataset, model="resnet8")
    assert result.images == 5


@pytest.mark.parametrize("given", [False, True])
def test_a_file_without_weights_is_refused_before_anything_is_asked_of_it(tmp_path, small_dataset, given):
    (tmp_path / "notes.pth").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.pth: damaged or not weights"):
        evaluate(tmp_path / "notes.pth", ["clean"], **({"data": small_dataset} if given else {}))


def test_results_of_a_network_that_hides_its_gradient_say_so(tmp_path, small_dataset, logged):
    path = tmp_path / "rounding.safetensors"
    save_weights(Rounding(5), path)
    name = "tests.evaluation.test_hidden_gradients:Rounding"
    clean, pgd = evaluate(path, ["clean", "pgd1"], data=small_dataset, model=name)
    reason = f"the gradient is zero at 5 of 5 images {ZERO}"
    assert (clean.warnings, pgd.warnings) == ((), (reason,))
    evaluate(path, ["clean"], data=small_dataset, model=name)
    assert [line for line in logged if "engine" not in line] == [f"{path}: {reason}"]


def test_normalisation_comes_from_the_settings_the_run_or_the_file(tmp_path, small_dataset):
    mean, std = (0.5,), (0.25,)
    run = RunFolder(tmp_path / "normalised")
    config = replace(CONFIG, model=ModelConfig(student="resnet8", peer="resnet8", mean=mean, std=std))
    run.create(config, {"data": {"folder": str(small_dataset), "train_sha256": ""}}, force=False)
    network = build_model("resnet8", 5, mean=mean, std=std)
    save_checkpoint(run.checkpoints, "best", 1, {"student": network}, {})
    (target,) = find_targets([run.path], "best")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(target.weights.read_bytes())
    (outside,) = find_targets([alone], "all")
    dataset = open_dataset(small_dataset)
    for weights, numbers, expected in (
        (target, {}, (mean, std)),
        (outside, {}, (mean, std)),
        (outside, {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}, ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))),
    ):
        protocol = Protocol(["clean"], 0, 8 / 255, 2 / 255, 0, 3, torch.device("cpu"), **numbers)
        built = protocol._network(weights, "resnet8" if weights is outside else "", dataset)
        assert normalization(built) == expected
    assert evaluate(alone, ["clean"], data=small_dataset, model="resnet8")[0].images == 5
