"""What run.json tells of a run's starts: command, source, machine, times."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastpeer.provenance import begun, ended, provenance_rows, source_commit, with_start


def git(folder: Path, *words: str) -> str:
    given = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-C", str(folder)]
    return subprocess.run(["git", *given, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if not shutil.which("git"):
        pytest.skip("needs git")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "fastpeer"\n', "utf-8")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_checkout_has_its_commit_and_says_where_the_tree_differs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    git(checkout, "tag", "v1")
    assert source_commit(checkout) == commit
    # As in a hook, where it names the repository that is committed to.
    monkeypatch.setenv("GIT_DIR", os.devnull)
    assert source_commit(checkout) == commit
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("\n")
    assert source_commit(checkout) == f"{commit}-dirty"


def test_another_repository_or_none_or_no_git_is_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = checkout / "site-packages"
    inside.mkdir()
    assert source_commit(inside) is None
    shutil.copy(checkout / "pyproject.toml", inside)
    assert source_commit(inside) is None
    (checkout / "pyproject.toml").write_text('[project]\nname = "thesis"\n', "utf-8")
    assert source_commit(checkout) is None
    shutil.copy(inside / "pyproject.toml", checkout)

    def slow(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("git", 1)

    monkeypatch.setattr(subprocess, "run", slow)
    assert source_commit(checkout) is None
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert source_commit(checkout) is None


def test_each_start_is_told_and_what_stayed_the_same_once() -> None:
    facts = ended(with_start({"recipe": "demo"}, begun(["train", "demo", "--out", "a b"], 0, "cpu")))
    rows = list(provenance_rows(with_start(facts, begun(["train", "--resume"], 7, "cpu"))))
    assert [name for name, _ in rows] == [
        "command", "time (UTC)", "source", "machine", "resumed", "time (UTC)",
    ]  # fmt: skip
    assert rows[0] == ("command", "fastpeer train demo --out 'a b'")
    assert rows[4] == ("resumed", "fastpeer train --resume")
    assert rows[1][1].endswith(", from step 0 on")
    assert "no end recorded" not in rows[1][1]
    assert rows[5][1].endswith(", no end recorded, from step 7 on")


def test_a_resumed_run_of_an_older_version_says_what_is_not_known() -> None:
    assert dict(provenance_rows({}))["command"] == "not recorded"
    rows = list(provenance_rows(with_start({}, begun(["train"], 5, "H200"))))
    assert rows[0] == ("command", "not recorded of the steps before 5")
    assert "H200" in dict(rows)["machine"]


@pytest.mark.parametrize(
    "starts", [3, [3], [{}], [{"memory": "x", "step": [], "began": {}}], [{"memory": 10**99}]]
)
def test_anything_in_the_place_of_starts_is_told_or_left_out(starts: object) -> None:
    assert list(provenance_rows({"starts": starts}))
