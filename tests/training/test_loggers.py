"""Where the numbers of metrics.jsonl go too: each record once, whatever was lost, resumed or failed."""

import csv
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fastpeer.config import Config, LogConfig
from fastpeer.errors import UserError
from fastpeer.run_folder import RunFolder
from fastpeer.training.log import MetricsLog
from fastpeer.training.loggers import Beginning, TensorBoard, check_loggers, numbers, open_loggers
from fastpeer.training.metrics_file import LogMark


class FakeWandb:
    """wandb's documented functions: init, and log and finish of the run that it returns."""

    def __init__(self):
        self.calls, self.begun, self.finished = [], [], 0

    def init(self, *, project, name, id, resume, dir, config):
        self.begun.append(SimpleNamespace(project=project, id=id, resume=resume, dir=dir, config=config))
        return self

    def log(self, data, step):
        self.calls.append((step, data))

    def finish(self):
        self.finished += 1


class FakeMlflow:
    """mlflow's documented functions."""

    def __init__(self):
        self.calls, self.begun, self.params, self.ended = [], [], [], 0

    def start_run(self, run_id=None, run_name=None):
        self.begun.append(run_id or run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "abc"))

    def log_params(self, params):
        self.params.append(params)

    def log_metrics(self, metrics, step):
        self.calls.append((step, metrics))

    def end_run(self):
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


@pytest.fixture
def mlflow(monkeypatch):
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "my run")
    folder.path.mkdir()
    return folder


def logging_to(*names):
    return replace(Config(), log=LogConfig(to=names))


def steps(first, last, epoch=0):
    """Records of single steps; the last is an epoch's last, whose accuracies follow."""
    records = [{"epoch": epoch, "step": step, "losses": {"ce": step / 10}} for step in range(first, last + 1)]
    return [
        *records,
        {"epoch": epoch, "step": last, "split": "val", "selection": {"student": {"clean": 50.0}}},
    ]


def write(run, config, records, length=0, step=0):
    log = MetricsLog(run, config, LogMark(length, step=step))
    for record in records:
        log.write(record)
    log.close()


def rows_of(run):
    return list(csv.DictReader(run.csv_file.read_text().splitlines()))


def resumed(run, config):
    """Train to step 5, and again from the checkpoint at step 3; then on to step 7."""
    first = MetricsLog(run, config, LogMark())
    for record in steps(1, 3):
        first.write(record)
    saved = first.file.length
    for record in steps(4, 5):
        first.write(record)
    first.close()
    write(run, config, [*steps(4, 5), *steps(6, 7, epoch=1)], saved, 3)


def test_wandb_continues_the_run_and_is_told_nothing_twice(run, wandb):
    resumed(run, logging_to("wandb"))
    first, second = wandb.begun
    assert first.id == second.id == json.loads(run.loggers_file.read_text())["wandb"]
    assert (first.resume, first.project, first.dir) == ("allow", "fastpeer", str(run.path))
    assert first.config["attack.steps"] == 10
    assert wandb.finished == 2
    expected = [
        (record["step"], dict(numbers(record))) for record in (*steps(1, 3), *steps(4, 5), *steps(6, 7))
    ]
    assert wandb.calls == expected
    json.dumps(first.config)


def test_mlflow_continues_the_run_and_is_told_nothing_twice(run, mlflow):
    resumed(run, logging_to("mlflow"))
    assert mlflow.begun == ["my run", "abc"]
    assert len(mlflow.params) == 1
    assert mlflow.params[0]["optim.milestones"] == "[214, 259, 284]"
    assert mlflow.ended == 2
    assert [step for step, _ in mlflow.calls] == [1, 2, 3, 3, 4, 5, 5, 6, 7, 7]
    assert mlflow.calls[3] == (3, {"selection/student/clean": 50.0})


def test_csv_has_a_row_for_each_record_and_drops_what_is_written_again(run):
    config = logging_to("csv")
    resumed(run, config)
    rows = rows_of(run)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 3, 4, 5, 5, 6, 7, 7]
    assert list(rows[0]) == ["epoch", "step", "losses/ce", "selection/student/clean"]
    assert [row["losses/ce"] for row in rows[:4]] == ["0.1", "0.2", "0.3", ""]
    assert [row["selection/student/clean"] for row in rows[:4]] == ["", "", "", "50.0"]


def test_csv_survives_half_a_row_of_a_killed_run(run):
    config = logging_to("csv")
    write(run, config, steps(1, 2))
    with run.csv_file.open("a") as file:
        file.write("0,")
    write(run, config, steps(3, 4), run.metrics_file.stat().st_size, 2)
    assert [int(row["step"]) for row in rows_of(run)] == [1, 2, 2, 3, 4, 4]


def test_tensorboard_keeps_the_events_of_the_step_it_resumes_from(run, monkeypatch):
    begun = []
    fake = SimpleNamespace(SummaryWriter=lambda folder, purge_step: begun.append((folder, purge_step)))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    TensorBoard(Beginning(run, Config(), 3)).write({"epoch": 0, "step": 4})
    assert begun == [(run.path / "tensorboard", 4)]


@pytest.mark.parametrize("moment", ["init", "log", "finish"])
def test_a_logger_that_fails_warns_once_and_the_others_go_on(run, wandb, monkeypatch, logged, moment):
    def fail(*_, **__):
        raise ConnectionError("the network is\nunreachable")

    monkeypatch.setattr(wandb, moment, fail)
    config = logging_to("wandb", "csv")
    write(run, config, steps(1, 3))
    assert [line for line in logged if "log.to" in line] == [
        "log.to wandb failed (the network is unreachable): the training goes on without it,"
        " metrics.jsonl has everything"
    ]
    assert len(run.metrics_file.read_text().splitlines()) == 4
    assert len(run.csv_file.read_text().splitlines()) == 5


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_training(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    check_loggers(["tensorboard", "csv"])
    with pytest.raises(UserError, match=rf"log.to {name}: .*pip install 'fastpeer\[{name}\]'") as refusal:
        check_loggers([name])
    assert "\n" not in str(refusal.value)


def test_no_loggers_are_none(run):
    assert open_loggers(Beginning(run, logging_to(), 0)) == []
