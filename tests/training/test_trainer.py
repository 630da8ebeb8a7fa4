"""A stopped and resumed run equals an uninterrupted one, to the last bit."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fastpeer.checkpoint import load_state
from fastpeer.config import (
    AttackConfig,
    Config,
    LogConfig,
    ModelConfig,
    OptimConfig,
    RecordConfig,
    SelectionConfig,
    SwaConfig,
    TeacherConfig,
    TrainConfig,
)
from fastpeer.data import beton
from fastpeer.data.dataset import open_dataset
from fastpeer.errors import UserError
from fastpeer.kernels.refusal import KernelRefusal
from fastpeer.methods.cat import Loss as CatLoss
from fastpeer.methods.iad import Loss as IadLoss
from fastpeer.methods.mtard import Loss as MtardLoss
from fastpeer.models import build_model
from fastpeer.models.weights import save_weights
from fastpeer.run_folder import RunFolder
from fastpeer.training.progress import Reporter
from fastpeer.training.schedule import learning_rate
from fastpeer.training.setup import set_up
from fastpeer.training.signals import Stopped, StopRequest
from fastpeer.training.trainer import Trainer
from tests.literal.peeraid import Settings as LiteralSettings
from tests.literal.peeraid_training import learning_rate as literal_learning_rate

pytestmark = pytest.mark.usefixtures("short_look_for_overfitting")

# 35 images are trained on and 10 held out, so that an epoch has 5 steps.
CONFIG = Config(
    model=ModelConfig(student="resnet8", peer="resnet8"),
    attack=AttackConfig(steps=1, start_std=0.01),
    optim=OptimConfig(milestones=(1,)),
    swa=SwaConfig(start=0),
    train=TrainConfig(batch_size=8, epochs=2),
    selection=SelectionConfig(fraction=0.2, steps=1, batch_size=8),
    log=LogConfig(every=2, to=()),
)
CPU = torch.device("cpu")
MOVING = replace(CONFIG, method="mtard", loss=MtardLoss(rate=0.5))
CHANGING = replace(CONFIG, method="iad", loss=IadLoss(begin=1))
FROZEN = replace(CONFIG, optim=OptimConfig(milestones=(1,), freeze=("student.layer?.*", "peer.*bn*")))
RECORDING = replace(CONFIG, record=RecordConfig(cross_robustness=True, images=7, steps=1))
SWAPPING = replace(CONFIG, method="cat", loss=CatLoss())
ALL_CHECKS = 2 * (5 + 5 + 4 * 2)
"""Number of stop checks in a run: after steps, and before batches of averaging and of the evaluations."""


class StopAt(StopRequest):
    """A stop requested at the check with a number, counted from 1; 0: never."""

    def __init__(self, number=0):
        super().__init__()
        self.left = number

    def check(self):
        self.left -= 1
        self.requested = self.left == 0
        super().check()


@pytest.fixture(scope="module", autouse=True)
def shared_loaders():
    """Share FFCV's loaders: it compiles for each one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beton, "_ffcv_loader", functools.cache(beton._ffcv_loader))
        yield


@pytest.fixture(scope="module")
def with_teachers(tmp_path_factory):
    """Return a function that adds teachers to the settings of a method that has some."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, role in enumerate(("teacher", "natural_teacher")):
        torch.manual_seed(seed)
        save_weights(build_model("resnet8", 5), folder / f"{role}.safetensors")

    def name(config):
        found = {role: TeacherConfig(weights=f"{folder / role}.safetensors") for role in config.table.frozen}
        return replace(config, **found)

    with pytest.MonkeyPatch.context() as patch:
        # Their weights are random, which would be refused.
        patch.setattr("fastpeer.training.setup.check_accuracy", lambda *words: None)
        yield name


@pytest.fixture(scope="module")
def trainer_for(small_dataset, with_teachers):
    dataset = open_dataset(small_dataset)

    def build(folder, config=CONFIG, stop=None):
        config = with_teachers(config)
        run = RunFolder(folder)
        resumes = run.exists
        if not resumes:
            run.create(config, {}, force=False)
        trainer = Trainer(run, config, set_up(config, dataset, CPU, {}), Reporter(), stop or StopRequest())
        if resumes:
            trainer.resume()
        return trainer

    return build


@pytest.fixture(scope="module")
def uninterrupted(trainer_for, tmp_path_factory):
    @functools.cache
    def train(config):
        folder = tmp_path_factory.mktemp("uninterrupted") / "run"
        trainer_for(folder, config).train()
        return folder

    return train


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    untimed = "images_per_second"
    return [{name: value for name, value in record.items() if name != untimed} for record in records]


def same(ours, theirs):
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def assert_same_run(ours, theirs):
    assert metrics(ours) == metrics(theirs)
    for checkpoint in ("last", "best", "best-swa"):
        folders = [run / "checkpoints" / checkpoint for run in (ours, theirs)]
        states = [load_state(folder) for folder in folders]
        for state in states:
            for name in ("log_length", "log_sha256"):  # images per second have other digits
                state.pop(name, None)
        assert same(*states), checkpoint
        names = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in folders]
        assert names[0] == names[1]
        for name in names[0]:
            first, second = (load_file(folder / name) for folder in folders)
            assert [key for key in first if not same(first[key], second[key])] == [], f"{checkpoint}/{name}"


@pytest.mark.parametrize(
    ("precision", "steps"),
    [
        ("fp32", 7), ("fp16", 5), ("fp64", 1),
        *(pytest.param(*case, marks=pytest.mark.soak) for case in (
            ("fp32", 1), ("fp32", 5), ("bf16", 1), ("bf16", 5), ("bf16", 7), ("fp16", 1), ("fp16", 7),
            ("fp64", 5), ("fp64", 7),
        )),
    ],
)  # fmt: skip
def test_run_resumed_after_max_steps_is_bit_exact(trainer_for, uninterrupted, tmp_path, precision, steps):
    # max_steps adds a log line at the last step; with a line at every step, it adds none.
    config = replace(CONFIG, precision=precision, log=LogConfig(every=1, to=()))
    trainer_for(tmp_path / "run", replace(config, train=replace(config.train, max_steps=steps))).train()
    assert load_state(tmp_path / "run/checkpoints/last")["position"]["step"] == steps
    trainer_for(tmp_path / "run", config).train()
    assert_same_run(tmp_path / "run", uninterrupted(config))


@pytest.mark.parametrize(
    "check",
    [
        8, ALL_CHECKS,
        *(pytest.param(check, marks=pytest.mark.soak) for check in (1, 3, 5, 6, 10, 11, 13, 14, 18, 20, 27)),
    ],
)  # fmt: skip
def test_run_resumed_after_a_stop_request_is_bit_exact(trainer_for, uninterrupted, tmp_path, check):
    with pytest.raises(Stopped):
        trainer_for(tmp_path / "run", stop=StopAt(check)).train()
    trainer_for(tmp_path / "run").train()
    assert_same_run(tmp_path / "run", uninterrupted(CONFIG))


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (MOVING, 7),
        (CHANGING, 5),
        (SWAPPING, 7),
        (FROZEN, 3),
        *(
            pytest.param(*case, marks=pytest.mark.soak)
            for case in (
                (MOVING, 1),
                (MOVING, 5),
                (CHANGING, 3),
                (CHANGING, 6),
            )
        ),
    ],
)
def test_run_of_a_method_with_state_resumes_bit_exactly(trainer_for, uninterrupted, tmp_path, config, steps):
    config = replace(config, log=LogConfig(every=1, to=()))
    trainer_for(tmp_path / "run", replace(config, train=replace(config.train, max_steps=steps))).train()
    trainer_for(tmp_path / "run", config).train()
    assert_same_run(tmp_path / "run", uninterrupted(config))


@pytest.mark.parametrize(
    "check", [6, *(pytest.param(check, marks=pytest.mark.soak) for check in (5, 9, 10, 12))]
)
@pytest.mark.parametrize("config", [MOVING, CHANGING], ids=["mtard", "iad"])
def test_run_of_a_method_with_state_resumes_bit_exactly_after_a_stop_request(
    trainer_for, uninterrupted, tmp_path, config, check
):
    with pytest.raises(Stopped):
        trainer_for(tmp_path / "run", config, StopAt(check)).train()
    trainer_for(tmp_path / "run", config).train()
    assert_same_run(tmp_path / "run", uninterrupted(config))


def test_cross_robustness_leaves_the_training_as_it_is(uninterrupted):
    ours, plain = uninterrupted(RECORDING), uninterrupted(CONFIG)
    for checkpoint in ("last", "best", "best-swa"):
        for file in (plain / "checkpoints" / checkpoint).glob("*.safetensors"):
            assert same(load_file(ours / "checkpoints" / checkpoint / file.name), load_file(file))
    records = metrics(ours)
    assert [record for record in records if "cross_robustness" not in record] == metrics(plain)
    cross = [record["cross_robustness"] for record in records if "cross_robustness" in record]
    assert len(cross) == 2
    for networks in cross:
        assert list(networks) == ["train", "val"]
        assert list(networks["val"]) == ["student", "peer"]
        assert list(networks["val"]["peer"]) == ["clean", "on_student", "on_peer"]


@pytest.mark.parametrize("check", [13, pytest.param(20, marks=pytest.mark.soak)])
def test_run_stopped_while_it_records_resumes_bit_exactly(trainer_for, uninterrupted, tmp_path, check):
    with pytest.raises(Stopped):
        trainer_for(tmp_path / "run", RECORDING, StopAt(check)).train()
    trainer_for(tmp_path / "run", RECORDING).train()
    assert_same_run(tmp_path / "run", uninterrupted(RECORDING))


class Shown(Reporter):
    """Notes the steps whose losses were shown."""

    def __init__(self):
        self.steps = []

    def interval(self, record):
        self.steps.append(record["step"])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1e-9, list(range(1, 11))), (1e9, [1, 2, 4, 5, 6, 8, 10]), (0, [2, 4, 5, 6, 8, 10])],
)
def test_losses_shown_by_the_clock_are_not_in_the_record(
    trainer_for, uninterrupted, tmp_path, seconds, shown
):
    config = replace(CONFIG, log=replace(CONFIG.log, seconds=seconds))
    trainer = trainer_for(tmp_path / "run", config)
    trainer.reporter = Shown()
    trainer.train()
    assert trainer.reporter.steps == shown
    assert_same_run(tmp_path / "run", uninterrupted(CONFIG))


def test_states_of_these_methods_change_during_the_run(uninterrupted):
    """Otherwise the tests above would pass without saving them."""
    state = load_state(uninterrupted(MOVING) / "checkpoints/last")["balance"]
    assert abs(state["weight"].item() - 0.5) > 1e-3
    assert state["first"].isfinite().all()
    terms = [list(record["losses"]) for record in metrics(uninterrupted(CHANGING)) if "losses" in record]
    assert terms[0] == ["student_kl_teacher"]
    assert terms[-1] == ["student_kl_teacher", "student_kl_clean"]


def test_number_of_stop_checks_is_as_assumed_above(trainer_for, tmp_path):
    stop = StopAt()
    trainer_for(tmp_path / "run", stop=stop).train()
    assert -stop.left == ALL_CHECKS


def test_run_in_double_precision_saves_it(uninterrupted):
    config = replace(CONFIG, precision="fp64", log=LogConfig(every=1, to=()))
    folder = uninterrupted(config) / "checkpoints"
    for name in ("last/student", "last/peer", "last/swa", "best/student", "best-swa/student"):
        tensors = load_file(folder / f"{name}.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float64, torch.int64}


def test_non_finite_loss_is_named_and_the_previous_checkpoint_kept(trainer_for, tmp_path):
    trainer_for(tmp_path / "run", replace(CONFIG, train=replace(CONFIG.train, max_steps=2))).train()
    exploding = replace(CONFIG, optim=replace(CONFIG.optim, lr=1e30))
    with pytest.raises(UserError, match="the loss peer_ce is not finite at step") as refusal:
        trainer_for(tmp_path / "run", exploding).train()
    assert "\n" not in str(refusal.value)
    folder = tmp_path / "run/checkpoints/last"
    assert str(folder) in str(refusal.value)
    assert load_state(folder)["position"]["step"] == 2
    assert all(tensor.isfinite().all() for tensor in load_file(folder / "student.safetensors").values())


def test_non_finite_loss_shown_by_the_clock_ends_the_run(trainer_for, tmp_path):
    exploding = replace(
        CONFIG, optim=replace(CONFIG.optim, lr=1e30), log=LogConfig(every=50, seconds=1e-9, to=())
    )
    with pytest.raises(UserError, match=r"is not finite at step [234];"):
        trainer_for(tmp_path / "run", exploding).train()


def test_stop_before_a_non_finite_loss_is_logged_keeps_the_good_checkpoint(trainer_for, tmp_path):
    trainer_for(tmp_path / "run", replace(CONFIG, train=replace(CONFIG.train, max_steps=1))).train()
    exploding = replace(CONFIG, optim=replace(CONFIG.optim, lr=1e30), log=replace(CONFIG.log, every=50))
    with pytest.raises((Stopped, UserError)):
        trainer_for(tmp_path / "run", exploding, StopAt(3)).train()
    weights = load_file(tmp_path / "run/checkpoints/last/student.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_resuming_without_a_checkpoint_is_refused(trainer_for, tmp_path):
    RunFolder(tmp_path / "run").create(CONFIG, {}, force=False)
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        trainer_for(tmp_path / "run")


def test_best_checkpoint_is_the_epoch_with_the_highest_accuracy_under_attack(uninterrupted):
    folder = uninterrupted(CONFIG)
    epochs = [record for record in metrics(folder) if "selection" in record]
    assert [record["epoch"] for record in epochs] == [0, 1]
    for network, checkpoint in (("student", "best"), ("swa", "best-swa")):
        found = [record["selection"][network] for record in epochs]
        best = max(range(2), key=lambda epoch: (found[epoch]["pgd1"], found[epoch]["clean"]))
        selected = load_state(folder / "checkpoints" / checkpoint)["selected"]
        assert selected == {"epoch": best, **found[best]}


@pytest.mark.parametrize("literal", [LiteralSettings(), LiteralSettings.tiny()])
def test_learning_rate_falls_at_the_epochs_of_the_released_code(literal):
    config = Config(optim=OptimConfig(milestones=literal.milestones))
    for epoch in range(300):
        assert learning_rate(config, epoch) == pytest.approx(literal_learning_rate(epoch, literal), rel=1e-14)


STEP = "fastpeer.step.step.TrainingStep.train_on"


def raising(error):
    def step(self, batch, number):
        raise error

    return step


def test_out_of_memory_error_names_the_batch_size(trainer_for, tmp_path, monkeypatch):
    trainer = trainer_for(tmp_path / "run")
    monkeypatch.setattr(STEP, raising(torch.OutOfMemoryError()))
    with pytest.raises(
        UserError, match=r"too little memory for a step of 8 images: lower --train.batch_size"
    ):
        trainer.train()


def test_kernel_refusal_names_the_way_around(trainer_for, tmp_path, monkeypatch):
    trainer = trainer_for(tmp_path / "run")
    monkeypatch.setattr(trainer.step, "options", replace(trainer.step.options, kernels=True))
    refusal = KernelRefusal("the fused loss needs logits (B, C) with B from 1 to 4096")
    monkeypatch.setattr(STEP, raising(refusal))
    with pytest.raises(UserError, match=r"B from 1 to 4096; run without Triton: --engine.kernels off"):
        trainer.train()


def test_triton_error_names_the_way_around(trainer_for, tmp_path, monkeypatch):
    errors = pytest.importorskip("triton.runtime.errors")
    trainer = trainer_for(tmp_path / "run")
    monkeypatch.setattr(STEP, raising(errors.OutOfResources(300_000, 232_448, "shared memory")))
    with pytest.raises(UserError, match=r"shared memory.*; run without Triton: --engine.kernels off"):
        trainer.train()


@pytest.mark.soak
def test_selection_reuses_what_was_compiled_for_the_training(trainer_for, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = replace(CONFIG.engine, compile="on", fold="on", chain="on", merge="on")
    once = replace(CONFIG.train, epochs=1)
    config = replace(CONFIG, precision="bf16", engine=compiled, swa=SwaConfig(enabled=False), train=once)
    trainer = trainer_for(tmp_path / "run", config)
    trainer.train()
    assert set(trainer.step.compiler.seconds) == {
        "the peer in eval mode", "the attack on the student", "training peer and student",
    }  # fmt: skip
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
