"""The names of attacks in `fastpeer eval`."""

import pytest

from fastpeer.errors import UserError
from fastpeer.evaluation.attack_names import ATTACKS, fewest_steps, heading, parse_attacks, split_name


def test_names_are_split_and_each_kept_once_in_order():
    assert parse_attacks(" PGD20, clean,,fgsm,clean,aa,pgd7 ") == ["pgd20", "clean", "fgsm", "aa", "pgd7"]


@pytest.mark.parametrize(
    "name",
    [
        "pgd", "pgd0", "pgd-1", "pgd1.5", "pgd20x", "pgd20x0", "cleen", "clean5", "fgsmx2", "autoattack",
        "aax2", "apgd-ce9", "cw0", "unbounded-1", "pgd" + "1" * 5000,
    ],
)  # fmt: skip
def test_unknown_name_is_refused_with_the_nearest(name):
    with pytest.raises(
        UserError, match=f"unknown attack {name}; (did you mean|the attacks are) .*(pgd|clean|aa)"
    ):
        parse_attacks(f"clean,{name}")


@pytest.mark.parametrize(
    ("word", "name", "shown"),
    [
        ("pgd20x1", "pgd20", "PGD-20"),
        ("pgd20x5", "pgd20x5", "PGD-20, 5 starts"),
        ("cw", "cw30", "CW-30"),
        ("cw100x2", "cw100x2", "CW-100, 2 starts"),
        ("unbounded", "unbounded100", "PGD-100, unbounded"),
        ("apgd-t", "apgd-t", "APGD-T"),
    ],
)
def test_a_name_says_its_numbers(word, name, shown):
    assert parse_attacks(word) == [name]
    assert heading(name) == shown


def test_every_attack_may_be_named():
    for kind, attack in ATTACKS.items():
        assert split_name(f"{kind}7" if attack.steps == 0 else kind).attack is attack
        assert (attack.build is None) == bool(attack.autoattacks)
    assert [heading(name, "l2") for name in ("fgsm", "cw30", "pgd20", "pgd")] == [
        "FGM", "margin PGD-30", "PGD-20", "PGD",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "steps"),
    [(["clean", "pgd20", "aa", "pgd7", "cw30"], 7), (["fgsm", "aa"], 0), (["unbounded5"], 0)],
)
def test_the_shortest_pgd_is_found(names, steps):
    assert fewest_steps(names) == steps


@pytest.mark.parametrize("text", ["", " , "])
def test_no_name_at_all_is_refused(text):
    with pytest.raises(UserError, match="--attacks must name at least one attack"):
        parse_attacks(text)
