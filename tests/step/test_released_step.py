"""The engine's step against an independent literal transcription of the released one, in float64."""

import copy
from dataclasses import replace

import pytest
import torch

from fastpeer.config import AttackConfig, Config, EngineConfig, OptimConfig, TrainConfig
from fastpeer.data.counter import counter_key
from fastpeer.data.stream import Batch
from fastpeer.kernels.counter_bits import mixed, signed
from fastpeer.kernels.gaussian_start import gaussian_start
from fastpeer.methods.peeraid import Loss
from fastpeer.models import build_model
from fastpeer.step.step import TrainingStep
from tests.literal.peeraid import Settings, training_step
from tests.step.one_layer import OneLayer

pytestmark = pytest.mark.usefixtures("nothing_logged")

BATCH = 4
CASES = {
    "cifar10": (Settings(), 10),
    "cifar100": (Settings.cifar100(), 100),
    "tiny": (Settings.tiny(), 200),
}


def config_for(literal, **changes):
    loss = Loss(
        temperature=literal.temperature,
        peer_temperature=literal.peer_temperature,
        lambda1=literal.lambda1,
        lambda2=literal.lambda2,
        lambda3=literal.lambda3,
        gamma1=literal.gamma1,
        gamma2=literal.gamma2,
        reduction=literal.reduction,
        peer_target_grad=literal.peer_target_grad,
        clean_target_grad=literal.clean_target_grad,
    )
    train = TrainConfig(batch_size=BATCH)
    return Config(loss=loss, optim=OptimConfig(lr=literal.lr), precision="fp64", train=train, **changes)


def networks(name, classes):
    pair = {}
    for seed, role in enumerate(("student", "peer")):
        torch.manual_seed(seed)
        network = OneLayer(classes) if name == "one layer" else build_model(name, classes)
        pair[role] = network.double()
    return pair


def batches(classes, size, count=3, tail=BATCH):
    """Draw images and labels; the last batch holds `tail`."""
    random = torch.Generator().manual_seed(7)
    return [
        (
            torch.randint(0, 256, (batch, 3, size, size), generator=random).double() / 255,
            torch.randint(0, classes, (batch,), generator=random),
        )
        for batch in [BATCH] * (count - 1) + [tail]
    ]


def attack_noise(images, std, number):
    key = signed(mixed(counter_key(Config().seed, "attack"), number))
    return gaussian_start(torch.zeros_like(images), std, torch.tensor(key))


def literal_run(pair, literal, data, std=0.0):
    optimizers = {
        role: torch.optim.SGD(
            pair[role].parameters(), literal.lr, literal.momentum, weight_decay=literal.weight_decay
        )
        for role in ("student", "peer")
    }
    for number, (images, labels) in enumerate(data):
        noise = attack_noise(images, std, number)
        training_step(pair, optimizers, images, labels, literal, {"adversarial": noise})


def engine_run(pair, config, data, std=0.0, **ball):
    config = replace(config, attack=AttackConfig(start_std=std, **ball))
    step = TrainingStep(config, config.table, pair)
    for number, (images, labels) in enumerate(data):
        step.train_on(Batch(images.to(memory_format=torch.channels_last), labels), number)
    return step


def assert_same(ours, theirs):
    for role in ("student", "peer"):
        expected = theirs[role].state_dict()
        for name, value in ours[role].state_dict().items():
            difference = (value - expected[name]).abs().max().item()
            assert difference < 1e-10, f"{role} {name}: {difference}"


@pytest.mark.parametrize(
    ("model", "case", "size"),
    [
        pytest.param("resnet18", "cifar10", 16, marks=pytest.mark.soak),
        ("resnet8", "cifar10", 16),
        pytest.param("resnet18", "tiny", 16, marks=pytest.mark.soak),
        ("wideresnet10x1", "cifar100", 32),
        ("wideresnet10x1", "tiny", 16),
        pytest.param("wideresnet10x1", "tiny", 64, marks=pytest.mark.soak),
        pytest.param("mobilenetv2", "cifar10", 16, marks=pytest.mark.soak),
        pytest.param("mobilenetv2", "tiny", 16, marks=pytest.mark.soak),
    ],
)
def test_three_steps_change_every_weight_and_buffer_as_the_released_code_does(model, case, size):
    literal, classes = CASES[case]
    ours = networks(model, classes)
    theirs = copy.deepcopy(ours)
    ours = {role: one.to(memory_format=torch.channels_last) for role, one in ours.items()}
    data = batches(classes, size)
    engine_run(ours, config_for(literal), data)
    literal_run(theirs, literal, data)
    assert_same(ours, theirs)


@pytest.mark.soak
@pytest.mark.parametrize("fast", ["on", "off"])
def test_mobilenetv2_differs_by_no_more_than_rounded_images_move_the_released_step(fast):
    """With large weights of the loss the step magnifies rounding, so that no fixed bound holds."""
    literal, classes = CASES["tiny"]
    ours = networks("mobilenetv2", classes)
    theirs, moved = copy.deepcopy(ours), copy.deepcopy(ours)
    ours = {role: one.to(memory_format=torch.channels_last) for role, one in ours.items()}
    data = batches(classes, 16)
    engine = EngineConfig(fold=fast, chain=fast, merge=fast, compile="off")
    engine_run(ours, config_for(literal, engine=engine), data)
    literal_run(theirs, literal, data)
    literal_run(moved, literal, [(images * (1 + 2.3e-16), labels) for images, labels in data])
    assert greatest_difference(ours, theirs) < 10 * greatest_difference(moved, theirs)


def greatest_difference(ours, theirs):
    return max(
        (value - theirs[role].state_dict()[name]).abs().max().item()
        for role in ("student", "peer")
        for name, value in ours[role].state_dict().items()
    )


OFF = EngineConfig(fold="off", chain="off", merge="off", compile="off", batchnorm="off")
ENGINES = {
    "nothing": OFF,
    "fold": replace(OFF, fold="on"),
    "fold and chain": replace(OFF, fold="on", chain="on"),
    "merge": replace(OFF, merge="on"),
    "fold, chain and merge": replace(OFF, fold="on", chain="on", merge="on"),
    "compile": replace(OFF, compile="on"),
    "fold and compile": replace(OFF, fold="on", compile="on"),
    "all": replace(OFF, fold="on", chain="on", merge="on", compile="on"),
    "batchnorm": replace(OFF, batchnorm="on"),
    "fold, chain, merge and batchnorm": replace(OFF, fold="on", chain="on", merge="on", batchnorm="on"),
    "all and batchnorm": replace(OFF, fold="on", chain="on", merge="on", compile="on", batchnorm="on"),
}


# Compiling takes the longest; "all" compiles every region, as a training on a GPU does. Parts stand alone and
# with the others.
SLOW = ("compile", "fold and compile", "all", "all and batchnorm", "fold", "batchnorm")


@pytest.mark.parametrize(
    ("engine", "model"),
    [
        *(
            pytest.param(engine, "resnet8", id=name, marks=pytest.mark.soak if name in SLOW else ())
            for name, engine in ENGINES.items()
        ),
        pytest.param(ENGINES["all"], "one layer", id="all, one layer"),
    ],
)
def test_no_part_of_the_engine_changes_the_step(engine, model):
    literal = Settings()
    ours = networks(model, 10)
    theirs = copy.deepcopy(ours)
    data = batches(10, 16, count=3, tail=3)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = engine_run(ours, config_for(literal, engine=engine), data, literal.start_std)
    literal_run(theirs, literal, data, literal.start_std)
    assert_same(ours, theirs)
    regions = {"the peer in eval mode", "the attack on the student", "training peer and student"}
    compiled = regions if engine.compile == "on" else set()
    if engine.batchnorm == "on":
        compiled = compiled - {"training peer and student"}
    assert set(step.compiler.seconds if step.compiler else ()) == compiled
    # Each once: not again in the second step, and not for the last batch.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(compiled)


L2 = {"norm": "l2", "epsilon": 0.5, "step_size": 0.1}


@pytest.mark.parametrize("engine", ["nothing", "fold, chain and merge"])
@pytest.mark.parametrize("ball", [L2, {**L2, "epsilon": 0.05}], ids=["0.5", "0.05"])
def test_steps_agree_in_the_l2_ball_too(engine, ball):
    """The noise of the start is 0.03 long on these images, and once the ball is hardly larger."""
    literal = replace(Settings(), **ball)
    ours = networks("resnet8", 10)
    theirs = copy.deepcopy(ours)
    data = batches(10, 16, tail=3)
    engine_run(ours, config_for(literal, engine=ENGINES[engine]), data, literal.start_std, **ball)
    literal_run(theirs, literal, data, literal.start_std)
    assert_same(ours, theirs)


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("peer_target_grad", [True, False])
@pytest.mark.parametrize("clean_target_grad", [True, False])
def test_loss_switches_mean_what_they_say(reduction, peer_target_grad, clean_target_grad):
    literal = Settings.tiny()
    literal.reduction = reduction
    literal.peer_target_grad = peer_target_grad
    literal.clean_target_grad = clean_target_grad
    ours = networks("wideresnet10x1", 5)
    theirs = copy.deepcopy(ours)
    data = batches(5, 16, count=2)
    engine_run(ours, config_for(literal), data)
    literal_run(theirs, literal, data)
    assert_same(ours, theirs)


def test_steps_agree_from_a_noisy_start_too():
    literal = Settings()
    ours = networks("wideresnet10x1", 10)
    theirs = copy.deepcopy(ours)
    data = batches(10, 16)
    engine_run(ours, config_for(literal), data, literal.start_std)
    literal_run(theirs, literal, data, literal.start_std)
    assert literal.start_std == Config().attack.start_std == 0.001
    assert_same(ours, theirs)


def test_student_runs_on_the_adversarial_images_once():
    literal = Settings()
    pair = networks("resnet8", 10)
    modes = []
    pair["student"].register_forward_pre_hook(lambda module, _: modes.append(module.training))
    engine_run(pair, config_for(literal, engine=OFF), batches(10, 16, count=1))
    assert modes.count(True) == 2
    assert modes.count(False) == 10
