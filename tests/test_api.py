"""What programs call: `fastpeer.load` and `fastpeer.evaluate`."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import fastpeer
from fastpeer.models import build_model
from fastpeer.models.weight_facts import WeightFacts
from fastpeer.models.weights import save_weights

EPSILON = 0.05


class Linear(nn.Module):
    """Two logits ±(w·x − b), whose smallest change in an L-infinity ball of radius ε is ε·|w|₁ each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 3 * 4 * 4))
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.inner = nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        score = self.inner(images.view(len(images), -1) @ self.weight)  # .view: it needs planes
        return torch.stack([score, -score], 1)


@pytest.fixture
def images() -> Tensor:
    """Images at least ε away from 0 and 1, so that the ball is whole."""
    return 0.1 + 0.8 * torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_linear_model_falls_exactly_within_its_margin(images):
    model = Linear()
    with torch.no_grad():
        scores = images.flatten(1) @ model.weight
        reach = EPSILON * model.weight.abs().sum()
    labels = (scores < 0).long()
    found = fastpeer.evaluate(
        model, (images, labels), ["clean", "fgsm", "pgd20"], epsilon=EPSILON, batch_size=16
    )
    stands = scores.abs() > reach
    assert 0 < int(stands.sum()) < len(images)
    assert found["clean"].correct == found["clean"].total == 40
    for attack in ("fgsm", "pgd20"):
        assert found[attack].stands == tuple(stands.tolist())
        assert found[attack].accuracy == pytest.approx(100 * float(stands.float().mean()))


def test_the_model_stays_as_it_was(images):
    model = Linear().train()
    model.inner.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fastpeer.evaluate(model, [(images, torch.zeros(40, dtype=torch.int64))], "pgd1")
    assert (model.training, model.inner.training) == (True, False)
    assert [value.requires_grad for value in model.parameters()] == [True, False]
    assert all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_batches_count_as_one_set(images):
    labels = torch.arange(40) % 2
    whole = fastpeer.evaluate(Linear(), (images, labels), "clean,pgd2")
    parts = fastpeer.evaluate(
        Linear(), list(zip(images.split(7), labels.split(7), strict=True)), "clean,pgd2"
    )
    assert [result.stands for result in whole.values()] == [result.stands for result in parts.values()]
    some = fastpeer.evaluate(Linear(), (images, labels), "clean", examples=10)["clean"]
    assert (some.images, some.total) == (10, 40)
    assert some.interval[0] < some.accuracy < some.interval[1]


def in_place(model):
    model.forward = lambda images: images.mul_(2).flatten(1)[:, :2]
    return model


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda model, images, labels: (model, (images * 255, labels)), "images must lie in [0, 1], got"),
        (lambda model, images, labels: (model, (images * float("nan"), labels)), "images must lie in [0, 1]"),
        (lambda model, images, labels: (model, (images.byte(), labels)), "of floating-point numbers"),
        (lambda model, images, labels: (model, (images, labels + 2)), "labels must be below the model's 2"),
        (lambda model, images, labels: (model, (images, labels[:3])), "labels must be (40,)"),
        (lambda model, images, labels: (model, images), "data must be a folder"),
        (lambda model, images, labels: (model, []), "at least one batch, got none"),
        (lambda model, images, labels: (model, "nosuch"), "no prepared data set in nosuch"),
        (lambda model, images, labels: (model, (images[..., :3], labels)), "does not accept images"),
        (lambda model, images, labels: (model.half(), (images, labels)), "float32, got float16"),
        (lambda model, images, labels: (nn.Flatten(), (images, labels)), "must have parameters"),
        (
            lambda model, images, labels: ("runs/a", (images, labels)),
            "got str: fastpeer.load(path) opens one",
        ),
        (lambda model, images, labels: (in_place(model), (images, labels)), "changes them in place"),
        (lambda model, images, labels: (model, (images, labels - 1)), "whole numbers from 0, got -1"),
        (lambda model, images, labels: (model, (images.numpy(), [0])), "got (ndarray, list)"),
        (
            lambda model, images, labels: (nn.Sequential(nn.Flatten(), nn.Linear(48, 1)), (images, labels)),
            "a logit for each class, two at least, got 1",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(images, change, told):
    model, data = change(Linear(), images, torch.zeros(40, dtype=torch.int64))
    with pytest.raises(fastpeer.UserError) as error:
        fastpeer.evaluate(model, data, "clean")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attacks": "pgdx"}, "unknown attack pgdx"),
        ({"norm": "l1"}, "norm must be linf or l2, got 'l1'"),
        ({"epsilon": 2}, "epsilon must be from 0 to 1"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"examples": -1}, "examples must be 0 or more, got -1"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"size": 8}, "size is for prepared data"),
        ({"epsilon": "8/255"}, "epsilon must be a number, such as 8 / 255, got '8/255'"),
        ({"norm": "l2", "epsilon": 8}, "epsilon must be at most 6.9 for norm l2"),
        ({"attacks": [20]}, r"attacks must be names, such as clean,fgsm,pgd20, got \[20\]"),
        ({"attacks": ""}, "^attacks must name at least one attack"),
    ],
)
def test_settings_are_checked(images, settings, told):
    with pytest.raises(fastpeer.UserError, match=told):
        fastpeer.evaluate(Linear(), (images, torch.zeros(40, dtype=torch.int64)), **settings)


def test_a_radius_of_the_other_norm_is_doubted(images):
    found = fastpeer.evaluate(Linear(), (images, torch.zeros(40, dtype=torch.int64)), "clean,fgsm", norm="l2")
    assert "nearly no attack" in found["fgsm"].warnings[0]
    assert found["clean"].warnings == ()


@pytest.fixture
def file(tmp_path):
    network = build_model("resnet8", 5, mean=(0.5,), std=(0.25,))
    path = tmp_path / "net.safetensors"
    save_weights(network, path, WeightFacts(network="resnet8", classes=5, size=(8, 8)))
    return path, network.eval()


def test_a_file_is_loaded_with_its_normalization(file):
    path, network = file
    images = torch.rand(3, 3, 8, 8)
    loaded = fastpeer.load(path)
    assert not loaded.training
    torch.testing.assert_close(loaded(images), network(images))


def test_what_a_file_does_not_tell_is_asked_for(tmp_path):
    torch.save(build_model("resnet8", 5).state_dict(), tmp_path / "net.pth")
    with pytest.raises(fastpeer.UserError, match="name its network with model"):
        fastpeer.load(tmp_path / "net.pth")
    with pytest.raises(fastpeer.UserError, match="pass classes"):
        fastpeer.load(tmp_path / "net.pth", model="resnet8")
    assert fastpeer.load(tmp_path / "net.pth", model="resnet8", classes=5)(torch.rand(1, 3, 8, 8)).shape == (
        1,
        5,
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"path": None}, "path must be a path, got None"),
        ({"checkpoint": 3}, "checkpoint must be text, got 3"),
        ({"classes": "5"}, "classes must be a whole number, got '5'"),
        ({"classes": -1}, "classes must be 0 or more, got -1"),
        ({"classes": 10**9}, "classes must be from 1 to 1,000,000, got 1000000000"),
        ({"mean": 0.5}, r"mean must hold 1 or 3 numbers, such as \[0.5\], got 0.5"),
        ({"mean": [0.5]}, "mean must hold 1 or 3 numbers and std as many"),
        ({"mean": [127], "std": [60]}, "mean must be at most 1, as pixels lie in"),
        ({"mean": [0.5], "std": [0]}, "std must be above 0"),
        ({"device": "tpu"}, "^device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"weights_key": "ema"}, "leave out weights_key ema"),
    ],
)
def test_arguments_are_checked_before_a_wrong_network_comes_of_them(file, settings, told):
    with pytest.raises(fastpeer.UserError, match=told):
        fastpeer.load(**{"path": file[0], **settings})


def test_a_device_may_be_torchs(file):
    assert next(fastpeer.load(file[0], device=torch.device("cpu")).parameters()).device.type == "cpu"


def test_a_file_alone_runs_no_code(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boom.py").write_text("raise SystemExit('ran')\n")
    save_weights(build_model("resnet8", 5), "own.safetensors", WeightFacts(network="boom:Net", classes=5))
    with pytest.raises(fastpeer.UserError, match="confirm it with model boom:Net"):
        fastpeer.load("own.safetensors")


def test_importing_it_is_quick():
    code = "import sys, fastpeer; sys.exit(str({'torch', 'numpy', 'cattrs'} & set(sys.modules) or ''))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""
    assert {"load", "evaluate", "UserError", "AttackResult"} == set(fastpeer.__all__) <= set(dir(fastpeer))
    with pytest.raises(AttributeError):
        _ = fastpeer.lode
