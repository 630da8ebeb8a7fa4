"""Settings as TOML."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpeer.config import (
    AttackConfig,
    Config,
    DataConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PaperConfig,
    SelectionConfig,
    SwaConfig,
    TrainConfig,
    format_fraction,
    parse_fraction,
)
from fastpeer.errors import UserError
from fastpeer.recipe import dump_recipe, load_recipe, nearest, parse_recipe, recipe_names, setting_names

positive = st.floats(1e-6, 1e6)
any_float = st.floats(0, 1e300)
counts = st.integers(0, 10**6)
some = st.integers(1, 10**6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
configs = st.builds(
    Config,
    method=st.sampled_from(["peeraid", "natural"]),
    seed=counts,
    precision=st.sampled_from(["fp64", "fp32", "tf32", "bf16", "fp16"]),
    model=st.builds(ModelConfig, student=st.sampled_from(["resnet8", "wideresnet16x2"])),
    data=st.builds(
        DataConfig, dataset=texts, augment=st.booleans(), shuffle=st.booleans(), drop_last=st.booleans()
    ),
    attack=st.builds(
        AttackConfig,
        epsilon=st.floats(0, 1) | st.integers(0, 255).map(lambda n: n / 255),
        step_size=st.floats(0, 1),
        steps=counts,
        start_std=any_float,
    ),
    loss=st.builds(
        LossConfig,
        temperature=positive,
        peer_temperature=positive,
        lambda1=any_float,
        gamma2=any_float,
        reduction=st.sampled_from(["mean", "batchmean"]),
        peer_target_grad=st.booleans(),
        clean_target_grad=st.booleans(),
    ),
    optim=st.builds(
        OptimConfig, lr=any_float, milestones=st.sets(counts, max_size=4).map(lambda s: tuple(sorted(s)))
    ),
    swa=st.builds(SwaConfig, enabled=st.booleans(), start=st.integers(-1, 300)),
    train=st.builds(TrainConfig, batch_size=some, epochs=some, max_steps=counts),
    selection=st.builds(
        SelectionConfig,
        split=st.sampled_from(["val", "test"]),
        fraction=st.floats(0.001, 0.999),
        examples=counts,
        steps=some,
        every=some,
        batch_size=some,
    ),
    log=st.builds(LogConfig, every=some, tensorboard=st.booleans()),
    paper=st.none()
    | st.builds(
        PaperConfig, row=texts, dataset=texts, clean=positive, fgsm=positive, pgd20=positive, aa=positive
    ),
)

CIFAR10 = {"temperature": 5.0, "lambda1": 0.0, "lambda2": 1.0, "lambda3": 1.0, "gamma2": 0.1}
CIFAR100 = {**CIFAR10, "gamma2": 1.0}
TINY = {"temperature": 1.0, "lambda1": 0.035, "lambda2": 35.0, "lambda3": 20.0, "gamma2": 100.0}
LONG, LATE = 300, (214, 259, 284)
SHIPPED = {
    # name: student, peer, epochs, milestones, loss, paper's clean, FGSM, PGD-20, AutoAttack
    "cifar10-resnet18": ("resnet18", "resnet18", LONG, LATE, CIFAR10, (85.01, 61.28, 54.36, 52.57)),
    "cifar10-wideresnet34x10": (
        "wideresnet34x10", "wideresnet34x10", LONG, LATE, CIFAR10, (85.64, 63.40, 56.81, 55.21)
    ),
    "cifar10-mobilenetv2": ("mobilenetv2", "mobilenetv2", LONG, LATE, CIFAR10, (82.41, 57.43, 52.00, 50.02)),
    "cifar100-resnet18": ("resnet18", "resnet18", LONG, LATE, CIFAR100, (59.35, 34.41, 29.69, 27.33)),
    "cifar100-wideresnet34x10": (
        "wideresnet34x10", "wideresnet34x10", LONG, LATE, CIFAR100, (61.33, 37.08, 32.39, 30.06)
    ),
    "cifar100-resnet18-wide-peer": (
        "resnet18", "wideresnet34x10", LONG, LATE, CIFAR100, (57.63, 34.33, 30.17, 26.99)
    ),
    "tiny-resnet18": ("resnet18", "resnet18", 200, (99, 149), TINY, (55.19, 29.42, 26.10, 21.67)),
    "tiny-wideresnet34x10": (
        "wideresnet34x10", "wideresnet34x10", 100, (49, 79), TINY, (58.07, 33.04, 29.51, 24.82)
    ),
}  # fmt: skip


@given(configs)
def test_any_settings_come_back_from_toml_bit_for_bit(config):
    assert parse_recipe(dump_recipe(config), "dumped") == config


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_holds_the_released_hyper_parameters(name):
    config = load_recipe(name)
    student, peer, epochs, milestones, loss, (clean, fgsm, pgd20, aa) = SHIPPED[name]
    dataset = name.split("-")[0]
    # What is not written here is the default.
    assert replace(config, paper=None) == Config(
        model=ModelConfig(student=student, peer=peer),
        data=DataConfig(dataset=dataset),
        loss=LossConfig(**loss, peer_temperature=1.0, gamma1=1.0, reduction="mean"),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=2e-4, milestones=milestones),
        swa=SwaConfig(enabled=True),
        train=TrainConfig(batch_size=128, epochs=epochs),
        selection=SelectionConfig(split="test"),
    )
    assert config.swa_start == milestones[0]
    paper = config.paper
    assert (paper.dataset, paper.clean, paper.fgsm, paper.pgd20, paper.aa) == (
        dataset,
        clean,
        fgsm,
        pgd20,
        aa,
    )


def test_no_other_recipe_than_these_and_the_demo_is_shipped():
    assert set(recipe_names()) == {*SHIPPED, "demo"}
    demo = load_recipe("demo")
    assert (demo.data.dataset, demo.train.epochs, demo.selection.split) == ("digits", 24, "val")


def test_default_attack_is_the_released_one():
    assert Config().attack == AttackConfig(epsilon=8 / 255, step_size=2 / 255, steps=10, start_std=0.001)


@given(st.floats(-1e300, 1e300) | st.integers(-300, 300).map(lambda n: n / 255))
def test_numbers_and_fractions_are_exact(value):
    assert parse_fraction(format_fraction(value)) == value


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (8, 8.0), ("0", 0.0)])
def test_fractions_are_read(text, value):
    assert parse_fraction(text) == value


@pytest.mark.parametrize("text", ["8/0", "8/", "a", "", True, None, [8], "8/255/2", "nan", "inf", "1e999"])
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(ValueError, match="needs a number or a fraction"):
        parse_fraction(text)


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("[attack]\nstep = 3", ["attack.step", "attack.steps"]),
        ("[atack]\nsteps = 3", ["atack", "attack"]),
        ("sed = 3", ["unknown key sed", "seed"]),
        ("[loss]\nlambda4 = 3", ["loss.lambda4", "loss.lambda1"]),
        ("attack = 3", ["attack", "[attack]"]),
        ("[attack]\nsteps = 2.5", ["attack.steps", "whole number", "2.5"]),
        ("[attack]\nsteps = -1", ["steps", "0 or more", "-1"]),
        ("[attack]\nepsilon = 'x'", ["attack.epsilon", "8/255"]),
        ("[data]\naugment = 1", ["data.augment", "true or false"]),
        ("[data]\ndataset = 1", ["data.dataset", "quotes"]),
        ("[loss]\nreduction = 'sum'", ["loss.reduction", "mean, batchmean"]),
        ("[loss]\nreduction = [1]", ["loss.reduction", "mean, batchmean"]),
        ("[loss]\ntemperature = 0.0", ["temperature", "more than 0"]),
        ("[optim]\nlr = true", ["optim.lr", "number"]),
        ("[optim]\nlr = nan", ["lr", "nan"]),
        ("[optim]\nmilestones = [3, 2]", ["milestones", "increasing", "[3, 2]"]),
        ("[optim]\nmilestones = [1.5]", ["optim.milestones", "list of whole numbers"]),
        ("[optim]\nmilestones = 3", ["optim.milestones", "list of whole numbers"]),
        ("[selection]\nfraction = 1.0", ["fraction", "between 0 and 1"]),
        ("[model]\nstudent = 'resnet19'", ["resnet19", "resnet18"]),
        ("[paper]\nrow = 'x'", ["paper", "missing"]),
        ("seed = ", ["not TOML"]),
    ],
)  # fmt: skip
def test_error_says_in_one_line_where_and_what(text, mentions):
    with pytest.raises(UserError) as refusal:
        parse_recipe(text, "mine.toml")
    message = str(refusal.value)
    assert message.startswith("mine.toml: ")
    assert "\n" not in message
    assert [mention for mention in mentions if mention not in message] == [], message


def test_recipe_is_found_by_path_and_a_misspelt_name_gets_the_nearest(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("seed = 7\n")
    assert load_recipe(str(file)).seed == 7
    with pytest.raises(UserError, match="tiny-resnet18"):
        load_recipe("tiny-resnet8")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"mine\.toml: cannot be read"):
        load_recipe(str(file))


def test_setting_names_are_dotted():
    assert {"seed", "attack.steps", "optim.milestones", "selection.split"} <= set(setting_names())


def test_nearest_names_all_words_where_none_is_like_it():
    assert nearest("stpes", ["steps", "epsilon"]) == "steps"
    assert nearest("q", ["steps", "epsilon"]) == "one of steps, epsilon"
