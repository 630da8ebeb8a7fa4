"""Settings: defaults < recipe < flags, in every spelling, and written down so that a run can be repeated."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli_files import metrics, weights

from fastpeer.cli.arguments import TrainArguments, parse
from fastpeer.config.recipes import load_recipe, recipe_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def config_of(*words: str):
    return parse(TrainArguments, words, "fastpeer train").config


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("--attack.steps 20", {"attack.steps": 20}),
        ("--attack.steps=20", {"attack.steps": 20}),
        ("--attack.step_size 1/255", {"attack.step_size": 1 / 255}),
        ("--attack.step-size 1/255", {"attack.step_size": 1 / 255}),
        ("--attack.epsilon 8/255", {"attack.epsilon": 8 / 255}),
        ("--attack.epsilon=0.03", {"attack.epsilon": 0.03}),
        ("--attack.norm l2 --attack.epsilon 3", {"attack.norm": "l2", "attack.epsilon": 3.0}),
        ("--data.augment false", {"data.augment": False}),
        ("--data.augment=false", {"data.augment": False}),
        ("--data.augment False", {"data.augment": False}),
        ("--data.no-augment", {"data.augment": False}),
        ("--data.no_augment", {"data.augment": False}),
        ("--data.augment true", {"data.augment": True}),
        ("--data.drop_last", {"data.drop_last": True}),
        ("--data.drop-last true", {"data.drop_last": True}),
        ("--data.no-drop-last", {"data.drop_last": False}),
        ("--optim.milestones 3 5 8", {"optim.milestones": (3, 5, 8)}),
        ("--optim.weight_decay 5e-4", {"optim.weight_decay": 5e-4}),
        ("--optim.weight-decay 0", {"optim.weight_decay": 0.0}),
        ("--precision bf16 --method natural", {"precision": "bf16", "method": "natural"}),
        ("--model.peer wideresnet10x2", {"model.peer": "wideresnet10x2"}),
        ("--attack.steps 3 --attack.steps 4", {"attack.steps": 4}),
    ],
)
def test_every_spelling_of_a_flag(words: str, value: dict[str, object]) -> None:
    config = config_of(*words.split())
    for name, expected in value.items():
        found: object = config
        for part in name.split("."):
            found = getattr(found, part)
        assert found == expected


ONE_EACH = {load_recipe(name).method: name for name in recipe_names()}
"""The last recipe of each method: others of it differ by numbers alone."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_EACH.values() else pytest.mark.soak)
        for name in recipe_names()
    ],
)
def test_a_shipped_recipe_is_not_changed_by_being_parsed(name: str) -> None:
    recipe = load_recipe(name)
    default = replace(TrainArguments(), config=recipe)
    assert parse(TrainArguments, [name], "fastpeer train", default=default).config == recipe


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(fastpeer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fastpeer(
        "train tiny.toml --attack.epsilon 4/255 --attack.step_size 1/255 --data.augment false"
        " --data.drop-last --optim.milestones 1 --train.max_steps 1 --precision fp64 --quiet --out",
        run,
    ).succeeded()
    config = tomllib.loads((run / "config.toml").read_text("utf-8"))
    attack = {"norm": "linf", "epsilon": "4/255", "step_size": "1/255", "steps": 1, "start_std": 0.001}
    unchanged = {"start": "method", "clamp_start": "method", "batchnorm": "method"}
    assert config["attack"] == attack | unchanged | {"precision": "run", "gradient_scale": 1024.0}
    data = {"dataset": "photos", "augment": False, "shuffle": True, "drop_last": True, "residency": "auto"}
    assert config["data"] == data | {"size": 0, "crop_scale": [0.08, 1.0], "reader": "auto"}
    assert config["optim"]["milestones"] == [1]
    assert config["optim"]["lr"] == 0.1
    assert config["precision"] == "fp64"
    assert config["model"] == {"student": "resnet8", "peer": "resnet8", "mean": [], "std": []}


def test_a_run_is_repeated_from_its_config(fastpeer, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    flags = "--seed 7 --attack.epsilon 0.0123 --optim.lr 0.07 --loss.gamma2 0.3 --train.epochs 2 --amp"
    fastpeer(f"train tiny.toml {flags} --quiet --out", first).succeeded()
    fastpeer("train --quiet --out", second, first / "config.toml").succeeded()
    assert weights(first) == weights(second)
    assert metrics(first) == metrics(second)
    assert (first / "config.toml").read_bytes() == (second / "config.toml").read_bytes()


def test_config_follows_what_a_resume_changed(fastpeer, tmp_path: Path, original: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    fastpeer("train tiny.toml --train.epochs 1 --quiet --out", run).succeeded()
    fastpeer("train --resume --train.epochs 3 --quiet --out", run).succeeded()
    assert weights(run) == weights(original)
    fastpeer("train --quiet --out", again, run / "config.toml").succeeded()
    assert weights(again) == weights(run)


def test_amp_is_written_as_the_precision_it_picked(fastpeer, tmp_path: Path) -> None:
    fastpeer(
        "train tiny.toml --amp --device cpu --train.max-steps 1 --quiet --out", tmp_path / "run"
    ).succeeded()
    assert 'precision = "bf16"' in (tmp_path / "run" / "config.toml").read_text("utf-8")
