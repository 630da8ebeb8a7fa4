"""Settings without end are one line, in bounded time."""

import pytest

from fastpeer.config import Config
from fastpeer.config.recipes import LARGEST_RECIPE, load_recipe, parse_recipe
from fastpeer.errors import UserError, printable, shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed = " + "[" * 100_000, "nested too deeply"),
        ("a" + ".a" * 20_000 + " = 1", "a line holds more than 200 dots"),
        ("a" + ".a" * 199 + " = 1", "unknown key a"),
        ("[model]\nmean = " + "[" * 300 + "]" * 300, "mean must be a list of numbers"),
        ("seed = " + "1" * 5000, "not TOML"),
        ("seed = 0x" + "f" * 5000, "seed must be less than 2^63, got a value too long to show"),
        ("[optim]\nmilestones = [0x" + "f" * 5000 + "]", "optim.milestones must be less than 2^63"),
        ("[optim]\nlr = 0x" + "f" * 5000, "optim.lr"),
        ("[optim]\nlr = 1e999999999", "optim.lr must be 0 or more, got inf"),
        ("[attack]\nepsilon = '1e999999999'", "attack.epsilon must be a number or a fraction"),
        ("[attack]\nepsilon = '1e999999999/3'", "attack.epsilon must be a number or a fraction"),
        ("[attack]\nepsilon = 0x" + "f" * 5000, "attack.epsilon must be a number or a fraction"),
        ("[train]\nbatch_size = 1000000000000", "train.batch_size must be at most 1,048,576"),
        ("[selection]\nbatch_size = 1000000000000", "selection.batch_size must be at most 1,048,576"),
        ("[data]\ndataset = 'a' \n[teacher]\nweights = \"a\\u0000b\"", "teacher.weights must hold no zero"),
        ("like = 0x" + "f" * 5000, "like must be a shipped recipe, got a value too long to show"),
        ("method = '" + "a" * 5000 + "'", "no method"),
    ],
)
def test_text_without_end_is_refused(text, words):
    with pytest.raises(UserError) as refusal:
        parse_recipe(text, "mine.toml")
    assert str(refusal.value).startswith("mine.toml: ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_recipe_of_megabytes_is_not_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("# a\n" * LARGEST_RECIPE)
    with pytest.raises(UserError, match="too large for a recipe"):
        load_recipe(str(path))


def test_largest_batch_is_a_setting():
    assert parse_recipe("[train]\nbatch_size = 1048576", "mine.toml") != Config()


def test_what_steers_a_terminal_is_spelled_out():
    assert printable("a\x1b[2J\n\u202eb\udcff é\u3000x") == "a\\x1b[2J\\n\\u202eb\\udcff é\u3000x"
    assert shown("a" * 100) == "'" + "a" * 79 + "…"
