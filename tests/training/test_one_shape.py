"""In a whole run, only batches of the step's size are compiled for: tails run uncompiled, to the same end."""

from dataclasses import replace

import pytest
import torch

from fastpeer.config import (
    AttackConfig,
    Config,
    EngineConfig,
    LogConfig,
    ModelConfig,
    RecordConfig,
    SelectionConfig,
    SwaConfig,
    TrainConfig,
)
from fastpeer.data.dataset import open_dataset
from fastpeer.methods.pgd_at import Loss as PgdAtLoss
from fastpeer.run_folder import RunFolder
from fastpeer.step.compile import Compiler
from fastpeer.training.progress import Reporter
from fastpeer.training.setup import set_up
from fastpeer.training.signals import StopRequest
from fastpeer.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("short_look_for_overfitting")

BATCH = 8
ENGINE = EngineConfig(fold="on", chain="on", merge="on", compile="on")
# 35 images are trained on and 10 held out: both end in a smaller batch.
CONFIG = Config(
    precision="fp64",
    model=ModelConfig(student="resnet8", peer="resnet8"),
    attack=AttackConfig(steps=1),
    swa=SwaConfig(start=0),
    train=TrainConfig(batch_size=BATCH, epochs=1),
    selection=SelectionConfig(fraction=0.2, steps=1),
    record=RecordConfig(cross_robustness=True, images=0, steps=1),
    log=LogConfig(to=()),
    engine=ENGINE,
)
IN_TRAIN_MODE = replace(
    CONFIG, method="pgd-at", loss=PgdAtLoss(), attack=AttackConfig(steps=1, batchnorm="train")
)
EVALUATED = {"the attack on the student", "the attack on the swa"}
CASES = {
    "peeraid": (
        CONFIG,
        {"the peer in eval mode", "training peer and student", "the attack on the peer", *EVALUATED},
    ),
    "pgd-at": (
        IN_TRAIN_MODE, {"training student", "the attack on the student in train mode", *EVALUATED}
    ),
}  # fmt: skip


@pytest.fixture
def sizes(monkeypatch):
    """Run what is compiled as it is, and note the sizes of its batches."""
    noted = set()

    def compile_(function, dynamic):
        def fast(batch, *rest):
            images = next(iter(batch.values())) if isinstance(batch, dict) else batch
            noted.add(len(images))
            return function(batch, *rest)

        return fast

    monkeypatch.setattr("torch.compile", compile_)
    return noted


def train(folder, dataset, config):
    run = RunFolder(folder)
    run.create(config, {}, force=False)
    setup = set_up(config, open_dataset(dataset), torch.device("cpu"), {})
    trainer = Trainer(run, config, setup, Reporter(), StopRequest())
    trainer.train()
    return trainer


@pytest.mark.parametrize(("config", "regions"), CASES.values(), ids=CASES)
def test_no_shape_but_the_full_batchs_is_compiled(config, regions, sizes, small_dataset, tmp_path):
    fast = train(tmp_path / "fast", small_dataset, config)
    assert isinstance(fast.step.compiler, Compiler)
    assert sizes == {BATCH}
    assert set(fast.step.compiler.seconds) == regions
    uncompiled = replace(config, engine=replace(ENGINE, compile="off"))
    plain = train(tmp_path / "plain", small_dataset, uncompiled)
    assert fast.average is not None
    for name, network in {**fast.setup.networks, "average": fast.average.network}.items():
        other = plain.average.network if name == "average" else plain.setup.networks[name]
        torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=0, atol=1e-10)
