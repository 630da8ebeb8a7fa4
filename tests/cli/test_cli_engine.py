"""The engine's switches on the command line: what is said of them, and that they change nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def test_a_run_says_what_it_uses_and_why_not_the_rest(fastpeer, tmp_path: Path) -> None:
    shown = (
        fastpeer("train tiny.toml --train.max-steps 1 --device cpu --out", tmp_path / "run").succeeded().out
    )
    lines = shown.splitlines()
    assert any(line.startswith("engine: fold, chain, merge (measured on ") for line in lines)
    others = next(line for line in lines if line.startswith("engine, not used: "))
    assert "graph (needs CUDA)" in others


def test_what_cannot_be_had_is_said_in_one_line_and_trains_all_the_same(fastpeer, tmp_path: Path) -> None:
    asked = "--engine.graph on --engine.kernels on --engine.streams on --device cpu"
    shown = fastpeer(f"train tiny.toml --train.max-steps 1 {asked} --out", tmp_path / "run").succeeded().out
    for part in ("graph", "kernels", "streams"):
        assert shown.splitlines().count(f"engine.{part}: not used, needs CUDA") == 1
    assert (tmp_path / "run" / "checkpoints" / "last" / "student.safetensors").is_file()


def test_parts_switched_off_train_the_same_student_up_to_rounding(
    fastpeer, original: Path, tmp_path: Path
) -> None:
    words = "--train.max-steps 2 --precision fp64 --quiet --out"
    fastpeer(f"train tiny.toml {words}", tmp_path / "fast").succeeded()
    off = "--engine.fold off --engine.chain off --engine.merge off"
    fastpeer(f"train tiny.toml {off} {words}", tmp_path / "slow").succeeded()
    last = "checkpoints/last/student.safetensors"
    fast, slow = (load_file(tmp_path / name / last) for name in ("fast", "slow"))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)


def test_a_run_may_go_on_with_other_parts(fastpeer, finished: Path) -> None:
    fastpeer("train --resume --train.epochs 4 --engine.fold off --quiet --out", finished).succeeded()


@pytest.mark.parametrize("words", ["--engine.fold yes", "--engine.fuse on", "--data.residency gpu"])
def test_nonsense_is_refused_in_one_line(fastpeer, words: str, tmp_path: Path) -> None:
    outcome = fastpeer(f"train tiny.toml {words} --out", tmp_path / "run")
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
