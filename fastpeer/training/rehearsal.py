"""A dry run: a few steps and the evaluation of a batch, from which the time of a training is estimated."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

from fastpeer.data.stream import Batch
from fastpeer.training.forecast import Part, timed
from fastpeer.training.trainer import Trainer


def rehearse(trainer: Trainer, announce: Callable[[str], None] = lambda what: None) -> list[Part]:
    """Return the parts of what is left of a training, with their times, after a few steps on its data.

    Nothing is written. The weights change, so the trainer must not train afterwards. `announce` is told what
    is done from now on.

    Raises:
        UserError: a step fails, see `Trainer.train_on`.
    """
    trainer.begin_epoch()
    with closing(_batches_without_end(trainer)) as batches:
        for number, batch in enumerate(batches, 1):
            announce(f"{'compiling, and ' if trainer.step.compiler else ''}measuring step {number}")
            trainer.train_on(batch)
            trainer.report_compiling()
            if trainer.pace.step_done():
                break
    announce("measuring the evaluation of a batch")
    return _parts_left(trainer)


def _batches_without_end(trainer: Trainer) -> Generator[Batch, None, None]:
    while True:
        yield from trainer.setup.training.epoch(trainer.position.epoch)


def _parts_left(trainer: Trainer) -> list[Part]:
    steps = max(0, trainer.total_steps - trainer.position.step)
    last = -(-trainer.total_steps // trainer.steps_per_epoch)
    epochs = range(trainer.position.epoch, last)
    averaged = {epoch for epoch in epochs if epoch >= (trainer.config.swa_start or 0)}
    if trainer.average is None:
        averaged = set()
    evaluated = {epoch for epoch in epochs if trainer.evaluates(epoch, last)}
    # The average is evaluated by itself.
    evaluations = len(evaluated) + len(evaluated & averaged)
    recorded = sum(trainer.cross_robustness.is_due(epoch, last) for epoch in epochs)
    return [
        Part("step", steps, trainer.pace.seconds),
        Part(
            "evaluation of student or average",
            evaluations,
            _evaluation_seconds(trainer) if evaluations else 0.0,
        ),
        Part(
            "BatchNorm pass of the average", len(averaged), _averaging_seconds(trainer) if averaged else 0.0
        ),
        Part("record of cross-robustness", recorded, _recording_seconds(trainer) if recorded else 0.0),
    ]


def _evaluation_seconds(trainer: Trainer) -> float:
    """Time the evaluation of one batch, and scale it to all images."""
    stream = trainer.setup.selection
    batch = replace(stream, indices=stream.indices[: stream.source.batch_size])
    selection = trainer.selection_on(batch)
    networks = trainer.setup.networks
    seconds = timed(
        lambda: selection.evaluate(networks, "student"),
        trainer.setup.device,
        trainer.step.compiler is not None,
    )
    return seconds * len(stream.indices) / len(batch.indices)


def _recording_seconds(trainer: Trainer) -> float:
    record = trainer.cross_robustness
    return timed(record.measure, trainer.setup.device, trainer.step.compiler is not None)


def _averaging_seconds(trainer: Trainer) -> float:
    average = trainer.average
    assert average is not None
    with closing(trainer.setup.training.epoch(0, purpose="averaging")) as batches:
        batch = next(batches)
        seconds = timed(
            lambda: average.reestimate([batch]), trainer.setup.device, trainer.step.compiler is not None
        )
    return trainer.steps_per_epoch * seconds
