"""What a run says that its networks get is what they get."""

import pytest
from torch import nn

from fastpeer.config import AttackConfig, Config, EngineConfig, TrainConfig
from fastpeer.methods.natural import Loss as NaturalLoss
from fastpeer.step.step import TrainingStep

ENGINE = EngineConfig(fold="on", chain="on", merge="on", compile="off", graph="off", kernels="off")
CHAIN = "folded 1 of 1 BatchNorms, a chain"
NO_CHAIN = "folded 1 of 1 BatchNorms, no chain: there is no rule for Sigmoid (1)"
UNFOLDED = "unfolded, no chain: its layer 4 has a __call__ of its own"


class Calling(nn.Linear):
    """Cannot be folded."""

    def __call__(self, x):
        return super().__call__(x)


def network(middle=nn.ReLU, linear=nn.Linear, momentum=0.1):
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum))
    return nn.Sequential(block, middle(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(4, 5)).double()


def step(student, peer=None, **settings):
    config = Config(
        engine=ENGINE, precision="fp64", train=TrainConfig(batch_size=4), attack=AttackConfig(steps=1),
        **settings,
    )  # fmt: skip
    pair = {"student": student} if peer is None else {"student": student, "peer": peer}
    return TrainingStep(config, config.table, pair)


@pytest.mark.parametrize(
    ("student", "peer", "used", "unused", "got"),
    [
        ({}, {}, "fold, chain, merge", [], (CHAIN, CHAIN)),
        ({"middle": nn.Sigmoid}, {}, "fold, chain, merge", [], (NO_CHAIN, CHAIN)),
        (
            {"middle": nn.Sigmoid}, {"middle": nn.Sigmoid}, "fold, merge",
            ["chain (0 of 2 networks in eval mode)"], (NO_CHAIN, NO_CHAIN),
        ),
        (
            {"linear": Calling}, {"linear": Calling}, "merge",
            ["fold (0 of 2 networks in eval mode)", "chain (0 of 2 networks in eval mode)"],
            (UNFOLDED, UNFOLDED),
        ),
        (
            {"momentum": None}, {}, "fold, chain",
            ["merge (the BatchNorms of student cannot be split)"], (CHAIN, CHAIN),
        ),
    ],
)  # fmt: skip
def test_a_run_says_what_each_network_gets(student, peer, used, unused, got):
    first, second, *networks = step(network(**student), network(**peer)).describe()
    assert first == f"engine: {used}"
    parts = second.removeprefix("engine, not used: ").split("; ")
    assert [part for part in parts if part.startswith(("fold", "chain", "merge"))] == unused
    assert sorted(networks) == sorted(
        f"engine, the {name} in eval mode: {what}"
        for name, what in zip(("student", "peer"), got, strict=True)
    )


def test_natural_training_has_nothing_to_fold_or_merge():
    lines = step(network(), method="natural", loss=NaturalLoss()).describe()
    assert lines[0] == "engine: no fast part"
    for part in ("fold (0 of 0 networks in eval mode)", "merge (no two passes to merge)"):
        assert part in lines[1]
    assert len(lines) == 2
