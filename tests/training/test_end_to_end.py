"""From images on disk to weights on disk by the commands, compared with the literal transcription."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastpeer.cli.main import main
from fastpeer.models import build_model
from tests.data_prep.prep_files import image_files, write_files
from tests.literal.peeraid import Settings
from tests.literal.peeraid_training import LiteralSWA, train

RECIPE = """
precision = "fp64"
[model]
student = "{model}"
peer = "{model}"
[data]
augment = false
shuffle = false
[attack]
start_std = 0.0
steps = 3
[optim]
milestones = [1]
[swa]
enabled = true
[train]
batch_size = 6
epochs = 2
[selection]
split = "test"
steps = 1
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("images"), image_files(["cat", "dog", "eel"], 5, height=16))


def read(folder):
    paths = sorted(folder.glob("*/*.png"))
    classes = sorted({path.parent.name for path in paths})
    pixels = np.stack([np.array(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2)
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    return torch.from_numpy(np.ascontiguousarray(pixels)).double() / 255, labels


def initial(model, folder):
    networks = {}
    for seed, role in enumerate(("student", "peer")):
        torch.manual_seed(seed)
        networks[role] = build_model(model, 3)
        # As the released code saves them: float32, with more than the weights, from a DataParallel.
        weights = {f"module.{name}": value for name, value in networks[role].state_dict().items()}
        torch.save({"epoch": 3, "state_dict": weights, "optimizer": {}}, folder / f"{role}.pth.tar")
    return {role: network.double() for role, network in networks.items()}


@pytest.mark.parametrize("model", ["resnet8", pytest.param("wideresnet10x1", marks=pytest.mark.soak)])
def test_two_epochs_of_the_commands_equal_the_literal_ones(model, images, tmp_path):
    expected = initial(model, tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model))
    data, run = str(tmp_path / "data"), tmp_path / "run"
    assert main(["prep", "--dataset", "folder", "--source", str(images), "--out", data]) == 0
    weights = [f"--init-{role}={tmp_path / role}.pth.tar" for role in ("student", "peer")]
    assert main(["train", str(recipe), "--data", data, "--out", str(run), *weights]) == 0

    everything, labels = read(images / "train")
    batches = [(everything[i : i + 6], labels[i : i + 6]) for i in range(0, 15, 6)]
    settings = Settings()
    settings.steps, settings.start_std, settings.milestones = 3, 0.0, (1,)
    train(expected["student"], expected["peer"], batches * 2, settings, lambda step: step // 3)
    average = LiteralSWA()
    average.collect(copy.deepcopy(expected["student"]))
    average.bn_update(batches)

    last = run / "checkpoints" / "last"
    for name, network in {**expected, "swa": average.model}.items():
        found = load_file(last / f"{name}.safetensors")
        for key, value in network.state_dict().items():
            if name == "swa" and key.endswith("num_batches_tracked"):
                continue
            assert found[key].dtype == value.dtype
            assert (found[key] - value).abs().max() < 1e-10, f"{name} {key}"
