import argparse
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastpeer.errors import UserError
from fastpeer.models import build_model
from fastpeer.models.normalized import without_normalization
from fastpeer.models.weights import load_weights, recorded_normalization, save_weights


def network(seed: int = 0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("resnet8", classes)


def channels_last(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def released_checkpoint(source: nn.Module, prefix: str = "module.") -> dict[str, Any]:
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9)
    source(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "state_dict": {prefix + name: tensor for name, tensor in source.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "epoch": 299,
        "acc": np.float64(52.5),
        "best_epoch": np.int64(3),
        "is_best": np.bool_(True),
        "args": argparse.Namespace(lr=0.1, milestones=[214, 259], arch="resnet8"),
    }


def assert_same_weights(network: nn.Module, expected: nn.Module) -> None:
    torch.testing.assert_close(network.state_dict(), expected.state_dict(), rtol=0, atol=0)


def replace_in_pickle(path: Path, old: bytes, new: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


def refusal(path: Path, target: nn.Module | None = None) -> str:
    """Text of the error, after checking that the network was left as it was."""
    target = target or network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(target, path)
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_channels_last", [False, True])
def test_round_trip_is_exact(tmp_path: Path, dtype: torch.dtype, is_channels_last: bool) -> None:
    source = channels_last(network().to(dtype)) if is_channels_last else network().to(dtype)
    source(torch.rand(2, 3, 8, 8, dtype=dtype))
    save_weights(source, tmp_path / "w.safetensors")
    target = network(seed=1).to(dtype)
    load_weights(target, tmp_path / "w.safetensors")
    assert_same_weights(target, source)


def test_file_holds_logical_order_dtype_and_format(tmp_path: Path) -> None:
    source = channels_last(network().double())
    save_weights(source, tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")
    assert stored["layer1.0.conv1.weight"].is_contiguous()
    assert stored["layer1.0.conv1.weight"].dtype == torch.float64
    assert torch.equal(stored["layer1.0.conv1.weight"], source.get_parameter("layer1.0.conv1.weight"))
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loading_keeps_dtype_and_memory_format(tmp_path: Path, dtype: torch.dtype) -> None:
    source = network()
    save_weights(source, tmp_path / "w.safetensors")
    target = channels_last(network(seed=1).to(dtype))
    load_weights(target, tmp_path / "w.safetensors")
    weight = target.get_parameter("layer1.0.conv1.weight")
    assert weight.dtype == dtype
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert_same_weights(target, source.to(dtype))


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("is_zip", [True, False])
def test_released_checkpoint_loads(tmp_path: Path, prefix: str, is_zip: bool) -> None:
    source = network()
    checkpoint = released_checkpoint(source, prefix)
    torch.save(checkpoint, tmp_path / "best.pth.tar", _use_new_zipfile_serialization=is_zip)
    target = network(seed=1)
    load_weights(target, tmp_path / "best.pth.tar")
    assert_same_weights(target, source)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_scalars_of_both_numpy_generations_load(tmp_path: Path, module: bytes) -> None:
    path = tmp_path / "best.pth.tar"
    torch.save(released_checkpoint(network()), path)
    written = np.float64().__reduce__()[0].__module__.encode()
    replace_in_pickle(path, b"c" + written + b"\nscalar", b"c" + module + b"\nscalar")
    load_weights(network(seed=1), path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"model": weights},
        lambda weights: {"net": weights, "model": "resnet8", "epoch": 3},
    ],
)
@pytest.mark.parametrize("file", ["w.pt", "w.pth"])
def test_state_dict_is_found(tmp_path: Path, file: str, wrap: Callable[[Any], Any]) -> None:
    source = network()
    torch.save(wrap(source.state_dict()), tmp_path / file)
    target = network(seed=1)
    load_weights(target, tmp_path / file)
    assert_same_weights(target, source)


def test_another_number_of_classes_is_named(tmp_path: Path) -> None:
    save_weights(network(classes=100), tmp_path / "w.safetensors")
    text = refusal(tmp_path / "w.safetensors")
    assert (
        "weights do not fit: 2 tensors (linear.weight must have shape (10, 64), got (100, 64); linear.bias"
        in text
    )
    assert text.endswith("the weights are for 100 classes, the data set has 10")


ADVICE = "; --init-reset-head begins with a new classification layer"


def test_another_number_of_classes_comes_with_advice_where_it_helps(tmp_path: Path) -> None:
    save_weights(network(classes=100), tmp_path / "w.safetensors")
    save_weights(build_model("resnet18", 100), tmp_path / "other.safetensors")
    for file, helps in (("w", True), ("other", False)):
        with pytest.raises(UserError) as error:
            load_weights(network(), tmp_path / f"{file}.safetensors", advice=ADVICE)
        assert (ADVICE in str(error.value)) == helps


class Ends(nn.Module):
    """Its head is a 1x1 convolution, before which stands another with as many outputs."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 10, 1), nn.Conv2d(10, classes, 1, bias=False)


@pytest.mark.parametrize("classes", [100, 10])
@pytest.mark.parametrize("kind", [lambda classes: network(1, classes), Ends])
def test_a_new_head_is_left_as_it_is_and_all_else_is_loaded(tmp_path: Path, kind: Any, classes: int) -> None:
    source, target, path = kind(classes), kind(10), tmp_path / "w.safetensors"
    save_weights(source, path)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    left_out = load_weights(target, path, reset_head=10)
    assert left_out in (["linear.weight", "linear.bias"], ["head.weight"])
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name] if name in left_out else source.state_dict()[name]), name


def test_a_new_head_may_be_missing_from_the_file_but_nothing_else(tmp_path: Path) -> None:
    weights = network(1).state_dict()
    headless = {name: tensor for name, tensor in weights.items() if not name.startswith("linear.")}
    torch.save(headless, tmp_path / "w.pt")
    assert load_weights(network(), tmp_path / "w.pt", reset_head=10) == ["linear.weight", "linear.bias"]
    del headless["bn1.weight"]
    torch.save(headless, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"bn1\.weight is missing"):
        load_weights(network(), tmp_path / "w.pt", reset_head=10)


def test_a_network_without_a_head_gets_no_new_one(tmp_path: Path) -> None:
    save_weights(network(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no linear layer or 1x1 convolution of the network has 11 outputs"):
        load_weights(network(), tmp_path / "w.safetensors", reset_head=11)


def edited(edit: Callable[[dict[str, Tensor]], object]) -> dict[str, Tensor]:
    weights = network().state_dict()
    edit(weights)
    return weights


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("bn1.weight"), "weights do not fit: 1 tensor (bn1.weight is missing)"),
        (
            lambda w: w.update({"extra\nname": torch.ones(1)}),
            "weights do not fit: 1 tensor (extra name is unexpected)",
        ),
        (lambda w: w.update({"bn1.bias": torch.ones(3)}), "(bn1.bias must have shape (16,), got (3,))"),
        (
            lambda w: w.update({"linear.weight": torch.ones(())}),
            "(linear.weight must have shape (10, 64), got ())",
        ),
        (lambda w: w.clear(), " (conv1.weight is missing; bn1.weight is missing)"),
    ],
)
@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
def test_mismatches_are_counted_and_named(
    tmp_path: Path, file: str, edit: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    write = save_file if file.endswith("safetensors") else torch.save
    write(edited(edit), tmp_path / file)
    assert refusal(tmp_path / file).endswith(message)


def test_another_network_does_not_fit(tmp_path: Path) -> None:
    save_weights(network(), tmp_path / "w.safetensors")
    assert "weights do not fit: " in refusal(tmp_path / "w.safetensors", build_model("wideresnet10x1", 10))


@pytest.mark.parametrize(
    ("written", "read", "key"),
    [
        ("preactresnet18-rice", "preactresnet18", "bn.weight is unexpected"),
        ("preactresnet18", "preactresnet18-rice", "bn.weight is missing"),
        ("resnet18", "resnet34", "is missing"),
        ("wideresnet28x10", "wideresnet28x2", "must have shape"),
    ],
)
@pytest.mark.parametrize("classes", [10, 100])
def test_weights_of_another_shipped_network_are_named(
    tmp_path: Path, written: str, read: str, key: str, classes: int
) -> None:
    with torch.device("meta"):
        shapes = build_model(written, classes).state_dict()
    weights = {
        f"module.{name}": torch.zeros((), dtype=one.dtype).expand(one.shape) for name, one in shapes.items()
    }
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    text = refusal(tmp_path / "w.pth", build_model(read, 10))
    assert key in text or classes == 100  # the shape of the classifier comes first
    assert text.endswith(f"; the weights are for {written}")
    assert ("the weights are for 100 classes" in text) == (classes == 100)


def test_no_network_is_named_where_only_the_classes_differ(tmp_path: Path) -> None:
    save_weights(network(classes=100), tmp_path / "w.safetensors")
    assert "those of" not in refusal(tmp_path / "w.safetensors")


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
def test_a_released_file_with_its_normalisation_loads_into_the_network_of_rice(
    tmp_path: Path, prefix: str
) -> None:
    """As AKD2's code saves it: the mean and std are buffers of the network."""
    source = build_model("preactresnet18-rice", 10)
    weights = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    weights |= {f"{prefix}normalize.{name}": torch.full((3,), 0.5) for name in ("mean", "std")}
    torch.save({"state_dict": weights}, tmp_path / "w.pt")
    half = (0.5, 0.5, 0.5)
    target = build_model("preactresnet18-rice", 10, mean=half, std=half)
    load_weights(target, tmp_path / "w.pt")
    assert recorded_normalization(tmp_path / "w.pt", "preactresnet18-rice") == (half, half)
    assert_same_weights(without_normalization(target), source)


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth.tar"])
@pytest.mark.parametrize("content", [b"", b"hello world", b"\x89PNG\r\n\x1a\n0000"], ids=repr)
def test_foreign_and_empty_files_are_refused(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    assert "damaged or not" in refusal(tmp_path / file)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_truncated_checkpoint_is_refused(tmp_path: Path, is_zip: bool, kept: float) -> None:
    path = tmp_path / "w.pth.tar"
    torch.save(released_checkpoint(network()), path, _use_new_zipfile_serialization=is_zip)
    os.truncate(path, int(path.stat().st_size * kept))
    assert "damaged or not a checkpoint" in refusal(path)


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.99])
def test_truncated_safetensors_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(network(), path)
    os.truncate(path, int(path.stat().st_size * kept))
    assert "damaged or not safetensors" in refusal(path)


@pytest.mark.parametrize(
    "harmful", [os.system, Path("w"), nn.Linear(1, 1)], ids=["function", "path", "module"]
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_objects_that_could_run_code_are_refused(tmp_path: Path, harmful: object, is_zip: bool) -> None:
    checkpoint = {"state_dict": network().state_dict(), "args": harmful}
    torch.save(checkpoint, tmp_path / "w.pth.tar", _use_new_zipfile_serialization=is_zip)
    assert "could run code" in refusal(tmp_path / "w.pth.tar")


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, [1, 2], {"state_dict": [1]}, {1: torch.ones(1)}, torch.ones(1)]
)
def test_checkpoint_without_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "holds no state dict" in refusal(tmp_path / "w.pth")


def test_missing_file_folder_and_other_suffix_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(b"")
    (tmp_path / "folder.pth").mkdir()
    assert "(No such file or directory)" in refusal(tmp_path / "w.pth")
    assert "(Is a directory)" in refusal(tmp_path / "folder.pth")
    assert ".safetensors, .pth.tar, .pth, .pt" in refusal(tmp_path / "w.onnx")


def test_failed_write_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written") as caught:
        save_weights(network(), tmp_path / "missing" / "w.safetensors")
    assert "\n" not in str(caught.value)
