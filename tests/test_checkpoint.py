"""Checkpoints: a round trip is exact, and a kill leaves a complete one."""

import errno
import multiprocessing
import os
import pickle
import random
import shutil
import stat
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from fastpeer.checkpoint import load_networks, load_state, save_checkpoint
from fastpeer.errors import UserError
from fastpeer.links import checkpoint_folder
from fastpeer.models import build_model


def constant_networks(value):
    """Two networks whose every weight is `value`."""
    pair = {"student": nn.Linear(300, 50), "peer": nn.Linear(300, 70)}
    for network in pair.values():
        for weight in network.parameters():
            nn.init.constant_(weight, value)
    return pair


def save(folder, value):
    save_checkpoint(folder, "last", value, constant_networks(value), {"value": value})


def save_forever(folder, first, links=True):
    if not links:
        os.symlink = no_links
    for value in count(first):
        save(folder, value)


def killed_at_once(*_, **__):
    raise KeyboardInterrupt


def no_links(*_, **__):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def saved(folder):
    """The value of a checkpoint that is complete: its state's and every weight's."""
    place = checkpoint_folder(folder / "last")
    networks = constant_networks(-1)
    load_networks(place, networks)
    weights = [weight for network in networks.values() for weight in network.parameters()]
    (value,) = torch.cat([weight.flatten() for weight in weights]).unique().tolist()
    assert load_state(place)["value"] == value
    return value


def copied_with_links_resolved(folder):
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


def unpacked_without_links(folder):
    """As by zipfile: a link becomes a text file with its target."""
    for link in folder.iterdir():
        if link.is_symlink():
            text = os.readlink(link)
            link.unlink()
            link.write_text(text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_and_optimizers_come_back_bit_for_bit(tmp_path, dtype):
    torch.manual_seed(0)
    network, other = (build_model("resnet8", 5).to(dtype) for _ in range(2))
    optimizer, fresh = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (network, other)
    )
    network(torch.rand(2, 3, 8, 8, dtype=dtype)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, "last", 1, {"student": network}, {"optimizer": optimizer.state_dict()})

    load_networks(tmp_path / "last", {"student": other})
    fresh.load_state_dict(load_state(tmp_path / "last")["optimizer"])
    expected = network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        momenta = (
            sgd.state[weight]["momentum_buffer"] for sgd, weight in ((optimizer, ours), (fresh, theirs))
        )
        assert torch.equal(*momenta)
    assert load_file(tmp_path / "last/student.safetensors")["linear.weight"].dtype == dtype


def test_only_the_newest_checkpoint_of_each_name_is_kept(tmp_path):
    for number in (1, 2, 2):
        save(tmp_path, number)
        for name in ("best", "best-swa"):
            save_checkpoint(tmp_path, name, number, constant_networks(number), {})
    kept = sorted(path.name for path in (tmp_path / ".store").iterdir())
    assert kept == sorted((tmp_path / name).readlink().name for name in ("last", "best", "best-swa"))
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".new")]


@pytest.mark.parametrize("links", [True, False])
def test_checkpoint_is_complete_after_a_kill_at_any_time(tmp_path, links):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chance, value = random.Random(0), 1
    save(tmp_path, value)
    if not links:
        unpacked_without_links(tmp_path)
    for _ in range(10):
        previous = newest(tmp_path)
        saving = context.Process(target=save_forever, args=(tmp_path, value + 1, links))
        saving.start()
        while newest(tmp_path) == previous:
            assert saving.is_alive()
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        saving.kill()
        saving.join()
        assert (tmp_path / "last").is_symlink() == links
        value = int(saved(tmp_path))
    save(tmp_path, value + 1)
    assert [path.name for path in (tmp_path / ".store").iterdir()] == [newest(tmp_path)]


def newest(folder):
    link = folder / "last"
    return (link.readlink() if link.is_symlink() else Path(link.read_text().strip())).name


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("change", [copied_with_links_resolved, unpacked_without_links])
def test_a_copy_without_links_goes_on(tmp_path, monkeypatch, change, links):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    change(folder)
    assert saved(folder) == 1
    if not links:
        monkeypatch.setattr(os, "symlink", no_links)
    for value in (2, 3):
        save(folder, value)
        assert saved(folder) == value
        assert sorted(path.name for path in folder.iterdir()) == [".store", "last"]
        assert [path.name for path in (folder / ".store").iterdir()] == [newest(folder)]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("call", ["rename", "replace"])
@pytest.mark.parametrize("again", [False, True])
def test_a_kill_while_a_folder_is_replaced(tmp_path, monkeypatch, links, call, again):
    """Before each step of it, and copied once more, with links resolved, before the run goes on."""
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    copied_with_links_resolved(folder)

    move = getattr(os, call)

    def killed(source, *target):
        # The first move is of the new checkpoint, which takes its name in the store once it is complete.
        if target and Path(source).name.startswith(".last-"):
            return move(source, *target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, call, killed)
        if not links:
            patch.setattr(os, "symlink", no_links)
        with pytest.raises(KeyboardInterrupt):
            save(folder, 2)
    assert saved(folder) == 2
    if again:
        copied_with_links_resolved(folder)
        assert saved(folder) == 2
    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", killed_at_once)
        with pytest.raises(KeyboardInterrupt):
            save(folder, 3)
    assert saved(folder) == 2
    save(folder, 4)
    assert saved(folder) == 4
    assert [path.name for path in (folder / ".store").iterdir()] == [newest(folder)]


@pytest.mark.parametrize(
    "text", ["", "x", ".store/", ".store/../..", ".store/last-000000009", "\x00\xff", "/"]
)
def test_a_text_file_that_names_no_checkpoint_is_none(tmp_path, text):
    save(tmp_path, 1)
    (tmp_path / "last").unlink()
    (tmp_path / "last").write_text(text)
    assert checkpoint_folder(tmp_path / "last") == tmp_path / "last"
    refused(checkpoint_folder(tmp_path / "last"))


def test_a_disk_that_cannot_flush_folders(tmp_path, monkeypatch):
    flushed = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flushed(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save(tmp_path, 1)
    assert saved(tmp_path) == 1


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def plain_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, plain_pickle])
def test_code_in_a_checkpoint_is_not_run(tmp_path, write):
    write({"value": Payload(str(tmp_path / "run"))}, tmp_path / "state.pt")
    refused(tmp_path)
    assert not (tmp_path / "run").exists()


def refused(folder):
    with pytest.raises(UserError, match=r"state\.pt") as refusal:
        load_state(folder)
    assert "\n" not in str(refusal.value)


def test_missing_state_is_refused(tmp_path):
    refused(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_truncated_state_is_refused(tmp_path, length):
    save(tmp_path, 1)
    path = tmp_path / "last/state.pt"
    path.write_bytes(path.read_bytes()[:length])
    refused(tmp_path / "last")


PICKLE_LIKE = st.lists(st.sampled_from(b"\x80\x02}](.tNK\x01qR0aes"), max_size=12).map(bytes)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=100) | PICKLE_LIKE)
def test_foreign_state_is_refused(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    refused(tmp_path)


def test_state_of_another_kind_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "state.pt")
    refused(tmp_path)
