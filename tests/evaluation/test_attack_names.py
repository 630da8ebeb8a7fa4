"""The names of attacks in `fastpeer eval`."""

import pytest

from fastpeer.errors import UserError
from fastpeer.evaluation.attacks import fewest_steps, parse_attacks


def test_names_are_split_and_each_kept_once_in_order():
    assert parse_attacks(" PGD20, clean,,fgsm,clean,aa,pgd7 ") == ["pgd20", "clean", "fgsm", "aa", "pgd7"]


@pytest.mark.parametrize(
    "name", ["pgd", "pgd0", "pgd-1", "pgd1.5", "pgd20x", "cleen", "autoattack", "pgd" + "1" * 5000]
)
def test_unknown_name_is_refused_with_the_nearest(name):
    with pytest.raises(UserError, match=f"unknown attack {name}; did you mean .*(pgd|clean|aa)"):
        parse_attacks(f"clean,{name}")


@pytest.mark.parametrize(("names", "steps"), [(["clean", "pgd20", "aa", "pgd7"], 7), (["fgsm", "aa"], 0)])
def test_the_shortest_pgd_is_found(names, steps):
    assert fewest_steps(names) == steps


@pytest.mark.parametrize("text", ["", " , "])
def test_no_name_at_all_is_refused(text):
    with pytest.raises(UserError, match="--attacks must name at least one attack"):
        parse_attacks(text)
