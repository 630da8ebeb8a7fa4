"""A run whose files were damaged or edited goes on from what is whole, or says which file is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_files import metrics, results, snapshot, weights
from kill_points import Points
from kill_points import run as in_a_copy

from fastpeer.manifest import MANIFEST
from fastpeer.run_folder import RunFolder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run", symlinks=True))


def flip(path: Path, place: int = -100) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def test_a_flipped_bit_is_named_and_the_checkpoint_before_is_used(
    fastpeer, run: Path, original: Path
) -> None:
    damaged = RunFolder(run).checkpoint("last").resolve()
    flip(run / "checkpoints" / "last" / "peer.safetensors")
    shown = fastpeer("train --resume --train.max-steps 0 --out", run).succeeded().out
    assert "last/peer.safetensors: damaged, its SHA-256 is not the one in manifest.json" in shown
    assert "going on from" in shown
    assert "last-000000005 instead" in shown
    assert weights(run) == weights(original)
    assert metrics(run) == metrics(original)
    # What is still good in it is not thrown away.
    assert (run / "checkpoints" / ".store" / f"damaged-{damaged.name}" / "student.safetensors").is_file()


@pytest.mark.soak
def test_a_dry_run_leaves_a_damaged_checkpoint_as_it_is(fastpeer, run: Path) -> None:
    (run / "checkpoints" / "last" / "state.pt").unlink()
    before = snapshot(run)
    shown = fastpeer("train --resume --train.max-steps 8 --dry-run --out", run).succeeded().out
    assert "last/state.pt is missing; going on from" in shown
    assert snapshot(run) == before


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        *(
            pytest.param(name, marks=pytest.mark.soak)
            for name in ("swa.safetensors", "state.pt", "student.safetensors", "settings.toml")
        ),
    ],
)
def test_a_damaged_file_of_the_only_checkpoint_is_refused_by_name(fastpeer, run: Path, name: str) -> None:
    shutil.rmtree(run / "checkpoints" / ".store" / "last-000000005")
    (flip if name != "manifest.json" else Path.unlink)(run / "checkpoints" / "last" / name)
    before = snapshot(run)
    line = fastpeer("train --resume --out", run).refused(name, "another --out")
    assert "--force" not in line
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seed = 0", "seed = 3", "seed was 0, now 3"),
        pytest.param("batch_size = 8", "batch_size = 4", "batch_size was 8, now 4", marks=pytest.mark.soak),
    ],
)
def test_edited_settings_are_refused(fastpeer, run: Path, old: str, new: str, told: str) -> None:
    edit(run / "config.toml", old, new)
    before = snapshot(run)
    fastpeer("train --resume --out", run).refused("config.toml", told, "--force-settings")
    assert snapshot(run) == before


@pytest.mark.soak
def test_edited_settings_can_be_insisted_on(fastpeer, run: Path) -> None:
    edit(run / "config.toml", "lr = 0.1", "lr = 0.05")
    shown = fastpeer("train --resume --force-settings --train.max-steps 8 --out", run).succeeded().out
    assert "going on with other settings than until now: optim.lr was 0.1, now 0.05" in shown
    # They are the run's now.
    fastpeer("train --resume --train.max-steps 9 --quiet --out", run).succeeded()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--train.epochs 1", "--train.epochs must be 2 or more"),
        pytest.param("--train.max-steps 6", "--train.max-steps must be 7 or more", marks=pytest.mark.soak),
    ],
)
def test_less_than_was_trained_is_refused(fastpeer, run: Path, flags: str, told: str) -> None:
    before = snapshot(run)
    fastpeer(f"train --resume {flags} --out", run).refused(told)
    assert snapshot(run) == before


@pytest.mark.soak
def test_other_threads_are_said(fastpeer, run: Path) -> None:
    facts = json.loads((run / "run.json").read_text("utf-8"))
    assert facts["threads"] == 1
    (run / "run.json").write_text(json.dumps({**facts, "threads": 2}), "utf-8")
    shown = fastpeer("train --resume --train.max-steps 7 --out", run).succeeded().out
    assert "note: threads was 2 when the run began, now 1: rounding will differ" in shown


@pytest.mark.soak
def test_other_test_images_are_refused(fastpeer, run: Path) -> None:
    facts = json.loads((run / "run.json").read_text("utf-8"))
    facts["data"]["test_sha256"] = "0" * 64
    (run / "run.json").write_text(json.dumps(facts), "utf-8")
    fastpeer("train --resume --out", run).refused("other test images")


def torn(run: Path) -> str:
    with (run / "metrics.jsonl").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 10)
    return "must have"


def garbled(run: Path) -> str:
    flip(run / "metrics.jsonl", 0)
    return "line 1 damaged, moved to metrics.jsonl.damaged"


def altered(run: Path) -> str:
    edit(run / "metrics.jsonl", '"lr": 0.1', '"lr": 0.2')
    return "figures in it were changed"


@pytest.mark.parametrize(
    "damage",
    [torn, pytest.param(garbled, marks=pytest.mark.soak), pytest.param(altered, marks=pytest.mark.soak)],
)
def test_a_damaged_log_is_said_and_goes_on(
    fastpeer, run: Path, original: Path, damage: Callable[[Path], str]
) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    told = damage(run)
    shown = fastpeer("train --resume --train.max-steps 8 --out", run).succeeded().out
    assert told in shown
    # Each line is whole, and only the damaged one is gone.
    left = metrics(run)
    assert len(left) >= len(lines)
    assert [record["step"] for record in left] == sorted(record["step"] for record in left)
    aside = run / "metrics.jsonl.damaged"
    assert aside.exists() == (damage is not altered)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def files_of(run: Path) -> list[Path]:
    """Everything in a run's folder that can be damaged, relative to it."""
    return sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file() or path.is_symlink())


@pytest.mark.soak
@pytest.mark.parametrize("damage", [flip, halve, empty, Path.unlink])
def test_no_damage_gives_other_weights_without_a_word(
    workshop: Path,
    stopped: Path,
    original: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(workshop)
    refused = same = 0
    for number, name in enumerate(files_of(stopped)):
        run = Path(shutil.copytree(stopped, tmp_path / str(number), symlinks=True))
        if damage is not Path.unlink and (run / name).is_dir():
            continue
        damage(run / name)
        words = ["train", "--resume", "--train.max-steps", "0", "--quiet", "--out", str(run)]
        code, _ = in_a_copy(words, Points(str(run)))
        assert code in (0, 2), name
        refused, same = refused + (code == 2), same + (code == 0)
        assert code == 2 or final_weights(run) == final_weights(original), name
    print(f"resume, {damage.__name__}: {refused} refused, {same} with the same weights")


@pytest.fixture
def evaluated(fastpeer, finished: Path) -> Path:
    """A finished run with results."""
    fastpeer("eval --quiet --attacks clean,fgsm", finished).succeeded()
    return finished


def figures(run: Path) -> list[str]:
    """What was found, but for the time that it took, and the name of the run's folder."""
    entries = results(run / "results.json")
    # The names of the files hold a checksum of the target's name.
    names = [{"target": entry["target"].split()[-1], "by_image_file": "", "seconds": 0} for entry in entries]
    return [json.dumps({**entry, **name}) for entry, name in zip(entries, names, strict=True)]


def replace_by_another(path: Path, other: Path) -> None:
    """Put the same file of another run in a file's place."""
    path.write_bytes(other.read_bytes())


@pytest.mark.soak
@pytest.mark.parametrize("damage", [flip, halve, empty, Path.unlink, replace_by_another])
def test_no_damage_gives_other_results_without_a_word(
    fastpeer, evaluated: Path, stopped: Path, tmp_path: Path, damage: Callable[..., None]
) -> None:
    whole, named, same = set(figures(evaluated)), 0, 0
    for number, name in enumerate(files_of(evaluated)):
        run = Path(shutil.copytree(evaluated, tmp_path / str(number), symlinks=True))
        others = [*stopped.rglob(name.name)][:1]
        replaced = damage is replace_by_another
        if (damage is not Path.unlink and (run / name).is_dir()) or (replaced and not others):
            continue
        damage(run / name, *others[:replaced])
        outcome = fastpeer("eval --quiet --attacks clean,fgsm", run)
        if outcome.code:
            line, named = outcome.refused(), named + 1
            # By the manifest of another, it is the files that are damaged.
            told = "/student.safetensors: damaged" if replaced and name.name == MANIFEST else name.name
            assert told in line or "neither a run" in line, name
        else:
            assert whole <= set(figures(run)), name
            same += 1
    print(f"eval, {damage.__name__}: {named} refused by name, {same} with the same results")


def final_weights(run: Path) -> dict[str, str]:
    return {name: sum for name, sum in weights(run).items() if "/last/" in name}


def test_a_damaged_best_is_said(fastpeer, run: Path) -> None:
    flip(run / "checkpoints" / "best" / "student.safetensors")
    shown = fastpeer("train --resume --train.max-steps 7 --out", run).succeeded().out
    assert "best/student.safetensors: damaged" in shown
    fastpeer("eval --attacks clean", run).refused("best/student.safetensors: damaged", "--checkpoints")


def test_a_missing_checkpoint_is_not_left_out_of_an_evaluation(fastpeer, run: Path) -> None:
    (run / "checkpoints" / "best").unlink()
    fastpeer("eval --attacks clean", run).refused("best", "is missing")
    fastpeer("eval --attacks clean --checkpoints last", run).succeeded()
    assert len(results(run / "results.json")) == 1


def test_a_network_that_was_edited_is_not_evaluated(fastpeer, run: Path) -> None:
    edit(run / "config.toml", "mean = []", "mean = [0.5]")
    edit(run / "config.toml", "std = []", "std = [0.25]")
    fastpeer("eval --attacks clean", run).refused("model.mean was (), now (0.5,)", "--force-settings")


def test_a_run_that_was_never_saved_is_begun_anew(fastpeer, run: Path, tmp_path: Path) -> None:
    for left in (
        ("config.toml", "run.json"),
        ("run.json",),
        (".config.toml.new",),
        (".config.toml.new", "config.toml"),
    ):
        begun = tmp_path / "-".join(left)
        (begun / "checkpoints" / ".store" / ".last-000000000").mkdir(parents=True)
        (begun / "metrics.jsonl").touch()
        for name in left:
            shutil.copy(run / name.removeprefix(".").removesuffix(".new"), begun / name)
        if left == ("config.toml", "run.json"):
            fastpeer("train --resume --out", begun).refused("begin it again", "not needed")
        refusal = RunFolder(begun).refuse_unless_free(force=False)
        assert refusal is None
    fastpeer("train tiny.toml --train.max-steps 1 --quiet --out", begun).succeeded()


@pytest.mark.soak
def test_a_folder_with_checkpoints_is_not_cleared_for_want_of_settings(fastpeer, run: Path) -> None:
    (run / "config.toml").unlink()
    before = snapshot(run)
    fastpeer("train tiny.toml --quiet --out", run).refused("already holds a run")
    assert snapshot(run) == before


@pytest.mark.soak
def test_momentum_and_decay_that_are_insisted_on_are_used(fastpeer, run: Path, tmp_path: Path) -> None:
    words = "train --resume --force-settings --train.max-steps 8 --quiet --out"
    plain = Path(shutil.copytree(run, tmp_path / "plain", symlinks=True))
    fastpeer(words, plain).succeeded()
    for name, old, new in (("weight_decay", "0.0002", "0.1"), ("momentum", "0.9", "0.1")):
        edited = Path(shutil.copytree(run, tmp_path / name, symlinks=True))
        edit(edited / "config.toml", f"{name} = {old}", f"{name} = {new}")
        fastpeer(words, edited).warned(f"optim.{name} was {old}, now {new}")
        assert final_weights(edited) != final_weights(plain)
