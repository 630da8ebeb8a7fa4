"""Files with weights by their content: which of several sets is taken, and what is none."""

import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastpeer.errors import UserError
from fastpeer.models import build_model
from fastpeer.models.weight_facts import WeightFacts, recorded_facts
from fastpeer.models.weights import load_weights, recorded_network, recorded_normalization, save_weights

SUFFIXES = ("w.pt", "w.pth", "w.ckpt", "w.bin", "w", "w.safetensors", "w.model")


def network(seed=0):
    torch.manual_seed(seed)
    return build_model("resnet8", 10)


def weights(seed=0):
    return network(seed).state_dict()


def loaded(path, key=""):
    target = network(9)
    load_weights(target, path, key)
    return target.state_dict()


def assert_is(found, seed):
    torch.testing.assert_close(found, weights(seed), rtol=0, atol=0)


def refusal(path, key=""):
    with pytest.raises(UserError) as caught:
        loaded(path, key)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", SUFFIXES)
def test_the_suffix_does_not_matter(tmp_path, name):
    torch.save({"state_dict": weights()}, tmp_path / name)
    assert_is(loaded(tmp_path / name), 0)
    save_weights(network(1), tmp_path / "plain.safetensors")
    shutil.copy(tmp_path / "plain.safetensors", tmp_path / name)
    assert_is(loaded(tmp_path / name), 1)


def test_normalisation_in_the_metadata_is_found_whatever_the_suffix(tmp_path):
    save_weights(build_model("resnet8", 10, mean=(0.5,), std=(0.25,)), tmp_path / "w.bin")
    assert recorded_normalization(tmp_path / "w.bin", "resnet8") == ((0.5,), (0.25,))


@pytest.mark.parametrize("prefix", ["model.", "net.", "network."])
def test_lightning_checkpoints_load(tmp_path, prefix):
    content = {
        "state_dict": {prefix + name: tensor for name, tensor in weights().items()},
        "callbacks": {"ModelCheckpoint": {"best_k_models": {"epoch=3.ckpt": torch.tensor(0.5)}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        "pytorch-lightning_version": "2.5.0",
    }
    torch.save(content, tmp_path / "w.ckpt")
    assert_is(loaded(tmp_path / "w.ckpt"), 0)


def test_the_choice_among_several_sets_is_logged(tmp_path, logged):
    path = tmp_path / "w.pth"
    torch.save({"state_dict_ema": weights(1), "epoch": 3, "state_dict": weights(0)}, path)
    assert_is(loaded(path), 0)
    assert logged == [
        f"{path}: took the weights under state_dict; others: --weights-key state_dict_ema",
    ]
    assert_is(loaded(path, "state_dict_ema"), 1)
    assert logged[1:] == [
        f"{path}: took the weights under state_dict_ema; others: --weights-key state_dict",
    ]


def test_a_single_set_needs_no_line(tmp_path, logged):
    torch.save({"state_dict": weights(), "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth")
    assert logged == []


@pytest.mark.parametrize("key", ["ema", "model_ema", "state_dict_ema"])
def test_averaged_weights_are_taken_where_there_are_no_others(tmp_path, key):
    torch.save({key: weights(), "best": 1.0}, tmp_path / "w.pt")
    assert_is(loaded(tmp_path / "w.pt"), 0)


@pytest.mark.parametrize("key", ["model", "net", "model_state_dict"])
@pytest.mark.parametrize("averaged", ["ema", "model_ema"])
def test_plain_weights_come_before_averaged_ones(tmp_path, key, averaged):
    torch.save({averaged: weights(1), key: weights(0)}, tmp_path / "w.pt")
    assert_is(loaded(tmp_path / "w.pt"), 0)


def test_sets_may_lie_deeper(tmp_path):
    torch.save(
        {"model": {"net": weights(0)}, "ema": {"decay": 0.9, "average": weights(1)}}, tmp_path / "w.pt"
    )
    assert_is(loaded(tmp_path / "w.pt"), 0)
    assert_is(loaded(tmp_path / "w.pt", "ema.average"), 1)


def test_keys_are_listed_where_none_is_known_or_right(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"student": weights(0), "tutor": weights(1)}, path)
    assert "no weights under a known key: name one of student, tutor with --weights-key" in refusal(path)
    assert "no weights under teacher: name one of student, tutor with --weights-key" in refusal(
        path, "teacher"
    )
    assert_is(loaded(path, "tutor"), 1)


def test_a_key_for_a_single_set_is_refused(tmp_path):
    torch.save(weights(), tmp_path / "w.pt")
    save_weights(network(), tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        assert "one set of weights only: leave out --weights-key ema" in refusal(tmp_path / name, "ema")


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model_ema": w}])
@pytest.mark.parametrize("parallel", [False, True])
def test_averaged_models_of_torch_load(tmp_path, wrap, parallel):
    averaged = AveragedModel(nn.DataParallel(network()) if parallel else network())
    assert "n_averaged" in averaged.state_dict()
    torch.save(wrap(averaged.state_dict()), tmp_path / "w.pt")
    assert_is(loaded(tmp_path / "w.pt"), 0)


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"<HTML><body>404</body></HTML>", "a web page"),
        (b"%PDF-1.5", "damaged or not weights"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)


def test_programs_and_whole_modules_are_named(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    assert "a TorchScript program: save its state_dict()" in refusal(tmp_path / "script.pt")
    torch.save(network(), tmp_path / "whole.pt")
    assert "could run code: save the state_dict() alone" in refusal(tmp_path / "whole.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("tensor", "numbers"), [("bn1.running_var", "1 of 16 numbers"), ("linear.weight", "1 of 640 numbers")]
)
def test_weights_that_are_not_finite_are_refused(tmp_path, name, value, tensor, numbers):
    broken = weights()
    broken[tensor].view(-1)[2] = value
    (save_file if name.endswith("safetensors") else torch.save)(broken, tmp_path / name)
    expected = f"weights must be finite, got NaN or infinity in {tensor} ({numbers})"
    assert refusal(tmp_path / name).endswith(expected)


def test_numbers_that_the_network_s_dtype_does_not_hold_are_refused_too(tmp_path):
    broken = {
        name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights().items()
    }
    broken["linear.bias"][0] = 1e300
    torch.save(broken, tmp_path / "w.pt")
    assert "infinity in linear.bias" in refusal(tmp_path / "w.pt")
    load_weights(network().double(), tmp_path / "w.pt")


def test_equal_weights_and_facts_give_equal_files(tmp_path):
    facts = WeightFacts(
        network="résnet8", classes=10, method="peeraid", dataset="digits", step=3, version="1"
    )
    contents, source = set(), build_model("resnet8", 10, mean=(0.5,), std=(0.25,))
    for number in range(8):
        save_weights(source, tmp_path / f"{number}", facts)
        contents.add((tmp_path / f"{number}").read_bytes())
        assert recorded_facts(tmp_path / f"{number}") == facts
    assert len(contents) == 1


@pytest.mark.parametrize(
    "metadata",
    [{"fastpeer.network": "resnet8"}, {"fastpeer.classes": '"ten"'}, {"fastpeer.size": '["a"]'},
     {"fastpeer.network": '"\\u001b[2J"'}, {"fastpeer.classes": "true"}],
)  # fmt: skip
def test_facts_that_are_not_of_their_type_are_left_out(tmp_path, metadata):
    save_file(weights(), tmp_path / "w.safetensors", metadata=metadata)
    assert recorded_facts(tmp_path / "w.safetensors") == WeightFacts()


def test_a_class_of_the_user_s_is_not_imported_because_a_file_names_it(tmp_path):
    save_weights(network(), tmp_path / "w", WeightFacts(network="nets:Net"))
    with pytest.raises(UserError, match=r"a class of your own: confirm it with --model nets:Net"):
        recorded_network(tmp_path / "w", "--model")
    assert recorded_network(tmp_path / "w", "--model", "nets:Net") == "nets:Net"


def test_the_network_of_weights_that_do_not_fit_is_named(tmp_path):
    save_weights(build_model("mobilenetv2", 10), tmp_path / "w", WeightFacts(network="mobilenetv2"))
    assert refusal(tmp_path / "w").endswith("; the weights are for mobilenetv2")


def test_a_normalisation_for_pixels_to_255_is_refused_with_what_is_meant(tmp_path):
    mean, std = torch.tensor([125.307, 122.961, 113.8575]), torch.tensor([62.9932, 62.0887, 66.7048])
    torch.save(weights() | {"mean": mean, "std": std}, tmp_path / "w.pt")
    meant = "it is mean 0.4914 0.4822 0.4465 and std 0.247 0.2435 0.2616"
    with pytest.raises(UserError, match=re.escape(meant)):
        recorded_normalization(tmp_path / "w.pt", "resnet8")


def test_a_normalisation_other_than_the_recorded_is_a_warning(tmp_path, logged):
    save_weights(build_model("resnet8", 10, mean=(0.5,), std=(0.25,)), tmp_path / "w")
    load_weights(build_model("resnet8", 10, mean=(0.5,) * 3, std=(0.25,) * 3), tmp_path / "w")
    assert logged == []
    load_weights(build_model("resnet8", 10, mean=(0.4,), std=(0.25,)), tmp_path / "w")
    (line,) = logged
    assert "mean 0.5 and std 0.25" in line
    assert "mean 0.4 and std 0.25" in line


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_part_of_a_set_is_named_and_taken(tmp_path, suffix):
    file = tmp_path / f"distilled.{suffix}"
    both = {f"{part}.{name}": tensor for part, seed in (("student", 0), ("teacher.net", 1))
            for name, tensor in weights(seed).items()}  # fmt: skip
    both["criterion.weight"] = torch.ones(10)
    if suffix == "pth":
        torch.save({"state_dict": both}, file)
    else:
        save_file(both, file)
    told = refusal(file)
    assert "; --weights-key student or --weights-key teacher takes a part that fits" in told
    assert_is(loaded(file, "student"), 0)
    assert_is(loaded(file, "teacher"), 1)
    assert_is(loaded(file, "teacher.net"), 1)


def test_negative_variances_are_refused(tmp_path):
    damaged = weights()
    damaged["bn1.running_var"][3] = -0.5
    torch.save(damaged, tmp_path / "w.pth")
    assert "variances must not be negative, got some in bn1.running_var" in refusal(tmp_path / "w.pth")
