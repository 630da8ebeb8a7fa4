"""Runs that former versions wrote, kept as they were: this one goes on with them and evaluates them.

format-1 is of the version before checkpoints had manifests, format-2 of the first that wrote them. Both are
the same PeerAiD run of 3 epochs of 5 steps, stopped at step 7; they must never be written anew.
"""

import json
import lzma
import shutil
from pathlib import Path

import pytest

from fastpeer.cli.main import main

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the runs: 40 training and 12 test images of 8×8 pixels in 4 classes."""
    folder = Path(shutil.copytree(HERE / "images", tmp_path_factory.mktemp("old") / "images"))
    for packed in folder.glob("*.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    return folder


@pytest.mark.parametrize(("name", "noted"), [("format-1", True), ("format-2", False)])
def test_a_run_of_a_former_version_goes_on_and_is_evaluated(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], name: str, noted: bool
) -> None:
    run = Path(shutil.copytree(HERE / name, tmp_path / "run", symlinks=True))
    begun = (run / "metrics.jsonl").read_text("utf-8")
    # The network is a class of this folder's.
    where = ["--data", str(images), "--trust"]
    assert main(["train", "--resume", "--train.max-steps", "0", "--out", str(run), *where]) == 0
    assert ("an older fastpeer wrote it" in capsys.readouterr().out) == noted
    written = (run / "metrics.jsonl").read_text("utf-8")
    assert written.startswith(begun)
    assert json.loads(written.splitlines()[-1])["epoch"] == 2
    fresh = Path(shutil.copytree(HERE / name, tmp_path / "fresh", symlinks=True))
    for evaluated, count in ((run, 4), (fresh, 2)):
        assert main(["eval", "--attacks", "clean", "--quiet", str(evaluated), *where]) == 0
        found = json.loads((evaluated / "results.json").read_text("utf-8"))["results"]
        assert len(found) == count
