"""Distances between images: their bounds in each norm, and settings that look like the other norm's."""

import pytest

from fastpeer.config import AttackConfig, check_fits, doubts
from fastpeer.config.recipes import parse_recipe
from fastpeer.config.toml import dump_recipe
from fastpeer.errors import UserError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epsilon = 1.5", ["attack.epsilon must be from 0 to 1", "8/255", "1.5"]),
        ("norm = 'linf'\nstep_size = 3", ["attack.step_size must be from 0 to 1", "got 3"]),
        ("norm = 'l2'\nepsilon = 1e4", ["attack.epsilon must be from 0 to 7094", "128/255", "10000"]),
        ("norm = 'l2'\nepsilon = -1", ["attack.epsilon must be", "-1"]),
        ("norm = 'l1'", ["attack.norm must be one of linf, l2", "l1"]),
        ("norm = 2", ["attack.norm must be one of linf, l2", "2"]),
    ],
)
def test_what_fits_no_ball_is_refused(text, words):
    with pytest.raises(UserError) as refusal:
        parse_recipe(f"[attack]\n{text}\n", "own.toml")
    assert all(word in str(refusal.value) for word in words)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("epsilon", ["3.0", "'128/255'", "'300/255'", "1"])
def test_a_radius_in_l2_may_be_above_one_and_is_kept(epsilon):
    config = parse_recipe(f"[attack]\nnorm = 'l2'\nepsilon = {epsilon}\n", "own.toml")
    assert config.attack.norm == "l2"
    assert config.attack.epsilon == pytest.approx(eval(epsilon.strip("'")))
    assert parse_recipe(dump_recipe(config), "again.toml") == config


def test_without_a_norm_it_is_linf():
    assert AttackConfig().norm == parse_recipe("[attack]\nsteps = 3\n", "old.toml").attack.norm == "linf"


def test_a_ball_that_holds_every_image_is_refused():
    check_fits("l2", 55.4, (32, 32), "--epsilon")
    check_fits("linf", 1.0, (1, 1), "--epsilon")
    with pytest.raises(UserError, match=r"--epsilon must be at most 55\.4 for norm l2.*32 x 32.*128/255"):
        check_fits("l2", 128.0, (32, 32), "--epsilon")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("l2", 8 / 255, 2 / 255, 10), ["norm l2 with epsilon 8/255 is nearly no attack", "128/255 or 0.5"]),
        (("l2", 0.5, 2 / 255, 10), ["norm l2 with step size 2/255", "10 steps", "0.078", "0.5"]),
        (("linf", 0.5, 0.1, 10), ["norm linf with epsilon 0.5", "is norm l2 meant"]),
    ],
)
def test_settings_of_the_other_norm_get_a_line(settings, words):
    (line,) = doubts(*settings)
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    "settings",
    [
        ("linf", 8 / 255, 2 / 255, 10), ("linf", 16 / 255, 4 / 255, 10), ("linf", 0.3, 0.01, 40),
        ("l2", 0.5, 0.1, 10), ("l2", 128 / 255, 15 / 255, 10), ("l2", 3.0, 0.5, 20), ("l2", 0.5, 2 / 255, 0),
        ("l2", 0.0, 0.0, 10),
    ],
)  # fmt: skip
def test_usual_settings_get_none(settings):
    assert list(doubts(*settings)) == []
