"""What `fastpeer train` writes and prints, and what it refuses to begin with."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from cli_files import STEPS, metrics, snapshot, weights

from fastpeer.models import build_model
from fastpeer.models.weights import save_weights


def test_a_run_folder_holds_what_it_should(original: Path) -> None:
    assert {path.name for path in original.iterdir()} == {
        "config.toml", "run.json", "metrics.jsonl", "checkpoints",
    }  # fmt: skip
    checkpoints = {path.name for path in (original / "checkpoints").iterdir() if path.name[0] != "."}
    assert checkpoints == {"last", "best", "best-swa"}
    assert {path.name for path in (original / "checkpoints" / "last").iterdir()} == {
        "student.safetensors", "peer.safetensors", "swa.safetensors", "state.pt", "settings.toml",
        "manifest.json",
    }  # fmt: skip
    # The best two, the last, and the one before it.
    assert len(list((original / "checkpoints" / ".store").iterdir())) == 4


def test_run_json_knows_the_data(original: Path, workshop: Path) -> None:
    facts = json.loads((original / "run.json").read_text("utf-8"))
    prepared = json.loads((workshop / "data" / "photos" / "dataset.json").read_text("utf-8"))
    assert facts["data"]["folder"] == str(workshop / "data" / "photos")
    assert facts["data"]["classes"] == 4
    assert facts["data"]["train_sha256"] == prepared["splits"]["train"]["sha256"]
    assert facts["device"]
    assert facts["versions"]["torch"] == torch.__version__
    (start,) = facts["starts"]
    assert start["command"].startswith("fastpeer train ")
    assert start["step"] == 0
    assert start["began"] <= start["ended"]


def test_metrics_have_a_line_for_each_interval_and_epoch(original: Path) -> None:
    records = metrics(original)
    assert [record["step"] for record in records if "losses" in record] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    assert [(record["epoch"], record["step"]) for record in records if "selection" in record] == [
        (0, 5), (1, 10), (2, 15),
    ]  # fmt: skip
    assert all(record["split"] == "val" and record["images"] == 4 for record in records if "split" in record)


def test_tensorboard_is_written_on_demand(fastpeer, tmp_path: Path) -> None:
    fastpeer(
        "train tiny.toml --log.to tensorboard --train.max-steps 1 --quiet --out", tmp_path / "run"
    ).succeeded()
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_loggers_are_chosen_and_checked_before_the_run(
    fastpeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", None)
    fastpeer("train tiny.toml --log.to csv wandb --out", run).refused("log.to wandb", "fastpeer[wandb]")
    assert not run.exists()
    words = "train tiny.toml --log.to csv --train.max-steps 2 --quiet --out"
    fastpeer(words, run).succeeded()
    assert [row.split(",")[1] for row in (run / "metrics.csv").read_text().splitlines()] == ["step", "2"]
    assert not (run / "tensorboard").exists()
    assert 'to = [\n    "csv",\n]' in (run / "config.toml").read_text()


def test_output_to_a_file_is_plain_lines(fastpeer, tmp_path: Path) -> None:
    shown = fastpeer("train tiny.toml --train.epochs 1 --out", tmp_path / "run").succeeded().out
    assert "\x1b" not in shown
    assert "\r" not in shown
    lines = shown.splitlines()
    assert str(tmp_path / "run") in lines[0]
    assert all(word in lines[0] for word in ("resnet8", "4 classes", "8x8", "fp32", "cpu"))
    assert [line for line in lines if line.startswith("epoch 0 step 2/5 left ")]
    assert [line for line in lines if line.startswith("epoch 0")]
    assert any("best" in line and "0" in line for line in lines)


def test_what_a_training_will_do_is_printed_first(fastpeer, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    lines = fastpeer("train tiny.toml --train.max-steps 7 --out", run).succeeded().out.splitlines()
    assert lines[1] == "networks: student with 77,652 parameters, peer with 77,652 parameters"
    assert lines[2] == (
        "36 training images in batches of 8: 3 epochs of 5 steps, 7 in all, by train.max_steps"
    )
    assert lines[3].startswith(
        "attack on the student: PGD, norm linf, epsilon 8/255, step size 2/255, 1 step, start "
    )
    assert lines[-1] == f"next: fastpeer eval '{run}' --attacks clean,fgsm,pgd20,aa"
    again = fastpeer("train --resume --train.max-steps 8 --out", run).succeeded().out
    assert "5 steps, 8 in all, by train.max_steps, 7 of them done" in again
    natural = fastpeer("train tiny.toml --method natural --dry-run --out", tmp_path / "natural").out
    assert "attack: none, the images stay clean" in natural


def test_a_dry_run_estimates_and_leaves_nothing(fastpeer, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    shown = fastpeer("train tiny.toml --dry-run --swa.start 1 --train.epochs 300 --out", run).succeeded().out
    assert list(tmp_path.iterdir()) == []
    lines = shown.splitlines()
    estimate = next(number for number, line in enumerate(lines) if line.startswith("estimated time: "))
    names = [
        "step: 1500 times ",
        "evaluation of student or average: 599 times ",
        "BatchNorm pass of the average: 299 times ",
    ]
    for line, name in zip(lines[estimate + 1 :], names, strict=False):
        assert line.startswith(f"  {name}")
    assert lines[-2].startswith("memory: ")
    assert lines[-2].endswith("GiB of the process (RSS)")
    assert lines[-1] == f"next: fastpeer train tiny.toml --swa.start 1 --train.epochs 300 --out '{run}'"


def test_a_dry_run_leaves_an_existing_run_alone(fastpeer, finished: Path) -> None:
    before = snapshot(finished)
    shown = fastpeer("train tiny.toml --dry-run --out", finished).succeeded().out
    assert f"note: without --dry-run this would be refused: {finished} already holds a run" in shown
    fastpeer("train tiny.toml --dry-run --force --out", finished).succeeded()
    shown = fastpeer("train --dry-run --resume --train.epochs 4 --out", finished).succeeded().out
    assert "20 in all, 15 of them done" in shown
    assert "  step: 5 times " in shown
    assert snapshot(finished) == before


def test_a_dry_run_refuses_what_a_training_would(fastpeer, tmp_path: Path) -> None:
    fastpeer("train tiny.toml --dry-run --data nosuch --out", tmp_path / "run").refused("nosuch")
    fastpeer("train tiny.toml --dry-run --device nosuch --out", tmp_path / "run").refused("--device")


def test_quiet_prints_nothing(fastpeer, tmp_path: Path) -> None:
    assert (
        fastpeer("train tiny.toml --train.max-steps 1 --quiet --out", tmp_path / "run").succeeded().out == ""
    )


def test_bars_stay_within_a_narrow_terminal(
    fastpeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    shown = fastpeer("train tiny.toml --train.epochs 2 --out", tmp_path / "run").out
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "\n")
    after = plain[plain.index("epoch 0") :]
    assert "━" in after
    assert "10/10" in after, "the count of steps is cut off"
    bars = [line for line in plain.splitlines() if "━" in line or "…" in line]
    assert max(map(len, bars)) <= 80


def test_a_run_is_not_overwritten(fastpeer, finished: Path) -> None:
    before = snapshot(finished)
    fastpeer("train tiny.toml --quiet --out", finished).refused(str(finished), "--resume", "--force")
    assert snapshot(finished) == before


def test_force_replaces_a_run(fastpeer, finished: Path, original: Path) -> None:
    (finished / "results.json").write_text("{}", "utf-8")
    fastpeer("train tiny.toml --train.epochs 1 --quiet --force --out", finished).succeeded()
    assert not (finished / "results.json").exists()
    assert metrics(finished)[-1]["step"] == 5


def test_force_leaves_the_run_alone_where_the_new_one_cannot_begin(fastpeer, finished: Path) -> None:
    before = snapshot(finished)
    fastpeer("train tiny.toml --force --data nosuch --out", finished).refused("nosuch")
    fastpeer("train tiny.toml --force --init-student nosuch.pt --out", finished).refused("nosuch.pt")
    fastpeer("train tiny.toml --force --device nosuch --out", finished).refused("nosuch")
    assert snapshot(finished) == before


@pytest.mark.parametrize("force", ["", "--force"])
@pytest.mark.parametrize("name", ["notes.txt", "config.toml", "run.json"])
def test_other_files_are_never_deleted(fastpeer, tmp_path: Path, name: str, force: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / name).write_text('title = "my site"\n', "utf-8")
    (site / "thesis.txt").write_text("years of work", "utf-8")
    before = snapshot(site)
    fastpeer(f"train tiny.toml {force} --quiet --out", site).refused(str(site))
    assert snapshot(site) == before


def test_files_put_into_a_run_survive_force(fastpeer, finished: Path) -> None:
    (finished / "thesis.txt").write_text("years of work", "utf-8")
    fastpeer("train tiny.toml --train.max-steps 1 --force --quiet --out", finished)
    assert (finished / "thesis.txt").read_text("utf-8") == "years of work"


def test_an_empty_folder_will_do(fastpeer, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    fastpeer("train tiny.toml --train.max-steps 1 --quiet --out", tmp_path / "run").succeeded()


def test_out_is_no_folder(fastpeer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep", "utf-8")
    fastpeer("train tiny.toml --force --quiet --out", tmp_path / "file").refused("file")
    fastpeer("train tiny.toml --quiet --out", tmp_path / "file" / "run").refused("file")
    assert (tmp_path / "file").read_text("utf-8") == "keep"


@pytest.fixture
def damaged(workshop: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workshop / "data" / "photos", tmp_path / "data"))


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("{", ["dataset.json"]),
        ("{}", ["dataset.json"]),
        ("[]", ["dataset.json"]),
        ("no test", ["dataset.json", "test"]),
        (None, ["fastpeer prep"]),
    ],
)
def test_a_wrong_manifest(fastpeer, damaged: Path, manifest: str | None, words: list[str]) -> None:
    file = damaged / "dataset.json"
    content = json.loads(file.read_text("utf-8"))
    if manifest is None:
        file.unlink()
    elif manifest == "no test":
        del content["splits"]["test"]
        file.write_text(json.dumps(content), "utf-8")
    else:
        file.write_text(manifest, "utf-8")
    run = damaged.parent / "run"
    fastpeer("train tiny.toml --out", run, "--data", damaged).refused(str(damaged), *words)
    assert not run.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_images(fastpeer, damaged: Path, damage: str) -> None:
    file = damaged / "train.beton"
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    run = damaged.parent / "run"
    fastpeer("train tiny.toml --out", run, "--data", damaged).refused(str(file), "fastpeer prep")
    assert not run.exists()


def test_data_that_are_not_there(fastpeer, tmp_path: Path) -> None:
    fastpeer("train tiny.toml --data nosuch --out", tmp_path / "run").refused("nosuch", "fastpeer prep")
    fastpeer("train cifar100-resnet18 --out", tmp_path / "run").refused("data/cifar100", "fastpeer prep")
    fastpeer("train tiny.toml --data data/photos/train.beton --out", tmp_path / "run").refused("train.beton")
    assert not (tmp_path / "run").exists()


def test_more_images_in_a_batch_than_there_are(fastpeer, tmp_path: Path) -> None:
    fastpeer("train tiny.toml --train.batch-size 1000 --data.drop-last --out", tmp_path / "run").refused(
        "36 training images", "1000"
    )


def test_initial_weights_are_taken(fastpeer, tmp_path: Path, original: Path) -> None:
    student = original / "checkpoints" / "last" / "student.safetensors"
    run, other = tmp_path / "run", tmp_path / "other"
    frozen = "train tiny.toml --train.max-steps 1 --optim.lr 0 --quiet"
    fastpeer(f"{frozen} --out", run, "--init-student", student, "--init-peer", student).succeeded()
    fastpeer(f"{frozen} --out", other).succeeded()
    from safetensors.torch import load_file

    given = load_file(student)
    for network in ("student", "peer"):
        taken = load_file(run / "checkpoints" / "last" / f"{network}.safetensors")
        assert all(torch.equal(taken[name], given[name]) for name in given if "running" not in name
                   and "num_batches" not in name)  # fmt: skip
    assert weights(run) != weights(other)


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that do not fit, and files that are none."""
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.system, ("touch pwned",)

    folder = tmp_path_factory.mktemp("strange")
    save_weights(build_model("resnet8", 7), folder / "seven.safetensors")
    save_weights(build_model("mobilenetv2", 4), folder / "other.safetensors")
    (folder / "junk.safetensors").write_bytes(b"x" * 50)
    (folder / "text.txt").write_text("x", "utf-8")
    torch.save({"state_dict": Evil()}, folder / "evil.pth")
    with (folder / "plain.pth").open("wb") as file:
        pickle.dump({"state_dict": Evil()}, file, protocol=4)
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch.pt", ["No such file"]),
        ("", ["directory"]),
        ("seven.safetensors", ["7 classes", "4", "--init-reset-head"]),
        ("other.safetensors", ["do not fit"]),
        ("junk.safetensors", ["damaged"]),
        ("text.txt", [".safetensors"]),
        ("evil.pth", ["not loaded"]),
        ("plain.pth", ["not loaded"]),
    ],
)
def test_wrong_initial_weights(fastpeer, tmp_path: Path, strange: Path, name: str, words: list[str]) -> None:
    run = tmp_path / "run"
    fastpeer("train tiny.toml --out", run, "--init-student", strange / name).refused(name, *words)
    assert not run.exists()
    assert not Path("pwned").exists()


def test_a_new_head_is_logged_and_recorded(fastpeer, tmp_path: Path, strange: Path) -> None:
    run, short = tmp_path / "run", "train tiny.toml --train.max-steps 1 --optim.lr 0 --init-reset-head"
    out = fastpeer(f"{short} --out", run, "--init-peer", strange / "seven.safetensors").succeeded().out
    assert "--init-peer: linear.weight and linear.bias begin at random, not from" in " ".join(out.split())
    initial = json.loads((run / "run.json").read_text("utf-8"))["initial"]
    assert initial["peer"]["left_out"] == ["linear.weight", "linear.bias"]
    fastpeer(f"{short} --out", tmp_path / "other").refused("--init-reset-head", "--init-student")


@pytest.mark.parametrize("section", ["model", "teacher", "natural-teacher"])
def test_a_normalisation_for_pixels_to_255(fastpeer, tmp_path: Path, section: str) -> None:
    words = f"--{section}.mean 125.3 123 113.9 --{section}.std 63 62.1 66.7"
    fastpeer(f"train tiny.toml {words} --out", tmp_path / "run").refused(
        f"--{section}.mean must be at most 1", "mean 0.4914 0.4824 0.4467 and std 0.2471 0.2435 0.2616"
    )
    assert not (tmp_path / "run").exists()


def test_averaged_weights_to_begin_with(fastpeer, tmp_path: Path) -> None:
    plain, averaged = (build_model("resnet8", 4).state_dict() for _ in range(2))
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "two.bin")
    words = "train tiny.toml --train.max-steps 1 --optim.lr 0 --weights-key state_dict_ema"
    fastpeer(words, "--out", tmp_path / "none").refused("--weights-key", "--teacher.weights-key")
    shown = fastpeer(words, "--out", tmp_path / "run", "--init-student", tmp_path / "two.bin").succeeded().out
    assert "took the weights under state_dict_ema; others: --weights-key state_dict" in shown
    from safetensors.torch import load_file

    taken = load_file(tmp_path / "run" / "checkpoints" / "last" / "student.safetensors")
    assert torch.equal(taken["conv1.weight"], averaged["conv1.weight"])


def test_a_peer_for_a_method_without(fastpeer, tmp_path: Path, original: Path) -> None:
    peer = original / "checkpoints" / "last" / "peer.safetensors"
    fastpeer("train tiny.toml --method natural --init-peer", peer, "--out", tmp_path / "run").refused(
        "--init-peer", "natural"
    )


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(fastpeer, tmp_path: Path) -> None:
    outcome = fastpeer("train tiny.toml --optim.lr 1e30 --log.every 1 --quiet --out", tmp_path / "run")
    outcome.refused("not finite", "step")


@pytest.mark.parametrize("device", ["nosuch", "meta", "cuda:99", ""])
def test_devices_that_are_not_there(fastpeer, tmp_path: Path, device: str) -> None:
    fastpeer("train tiny.toml --out", tmp_path / "run", "--device", device).refused("--device", "cpu")


def test_an_l2_ball_is_trained_in_and_one_of_the_other_norm_is_doubted(fastpeer, tmp_path: Path) -> None:
    words = "train tiny.toml --train.max-steps 1 --attack.norm l2"
    fastpeer(f"{words} --attack.epsilon 128 --out", tmp_path / "run").refused("--attack.epsilon", "128/255")
    outcome = fastpeer(f"{words} --out", tmp_path / "run").succeeded()
    assert "norm l2 with epsilon 8/255 is nearly no attack" in outcome.out
    assert "(norm l2)" in outcome.out
    assert outcome.out.splitlines()[-1].endswith(",aa --norm l2 --epsilon 8/255 --step-size 2/255")
    outcome = fastpeer("eval --checkpoints last --attacks clean", tmp_path / "run").succeeded()
    assert "trained with attack.norm = l2, attacked here in L-infinity" in " ".join(outcome.out.split())


def test_step_count(original: Path) -> None:
    assert metrics(original)[-1]["step"] == STEPS
