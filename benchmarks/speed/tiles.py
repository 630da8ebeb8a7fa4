"""Which tile of our convolution's kernel is fastest for each layer of a network, on this GPU.

python -m benchmarks.speed.tiles --networks resnet18 --batches 128
The rows go to the user's table, from which trainings on this kind of GPU take them; --table names another.
With reports of former runs in place of a measurement, their rows go there.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.table import Table

from benchmarks.harness.display import missing, short, show
from benchmarks.harness.measuring import Run, alternate, replayed, sets_beyond_cache
from benchmarks.harness.program import Timed, start
from benchmarks.harness.record import Report, read_json, record, write_json
from benchmarks.speed.layer_cases import Shape, own_call, shapes_of, tensors_of
from benchmarks.speed.primitive_cases import DTYPES
from fastpeer.errors import UserError, one_line
from fastpeer.kernels import convolution_tiles as tiles
from fastpeer.kernels.convolution_tiles import Problem, Row, Tile

NOTE = "rows"


@dataclass(frozen=True, kw_only=True)
class Arguments(Timed):
    """Measure tiles in alternation, and keep the fastest of each layer."""

    reports: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Reports of this program, or suite.json files with some: their rows are taken, nothing is measured."""
    networks: tuple[str, ...] = ("resnet18",)
    """Whose convolutions."""
    batches: tuple[int, ...] = (128,)
    """Images at once."""
    dtypes: tuple[Literal["bf16", "fp16"], ...] = ("bf16",)
    """Formats."""
    most: int = 6
    """Tiles to measure for each layer, the most promising."""
    table: Path | None = None
    """Where the rows go; by default the user's own table."""
    seconds: float = 0.02
    """Seconds of a round for each tile, about."""
    rounds: int = 7
    """Rounds of the alternation, at most."""


def main(arguments: Arguments) -> None:
    """Measure or read, and write the table."""
    table = arguments.table or tiles.users_table()
    former = _rows_in(table)
    found = _taken(arguments.reports) if arguments.reports else _measured(arguments)
    table.parent.mkdir(parents=True, exist_ok=True)
    write_json(table, [asdict(row) for row in tiles.merged(former, found)])
    show(f"{len(found)} rows in {table}")


def _rows_in(table: Path) -> list[Row]:
    try:
        return tiles.read_rows(table.read_text("utf-8")) if table.exists() else []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"--table {table}: must be a table of tiles, got {one_line(error)}") from None


def _taken(reports: Sequence[Path]) -> list[Row]:
    """Return the rows of reports."""
    found = []
    for path in reports:
        content = read_json(path)
        sections = [entry["report"] or {} for entry in content.get("sections", {}).values()]
        found += [row for report in (content, *sections) for row in report.get("notes", {}).get(NOTE, [])]
    if not found:
        raise UserError("no rows of tiles are among these reports")
    return [tiles.read_row(row) for row in found]


def _measured(arguments: Arguments) -> list[Row]:
    device = arguments.chosen_device()
    report = Report("tiles", arguments, device, arguments.json)
    if device.type != "cuda":
        report.miss("tiles", "needs CUDA")
        report.save()
        show(*missing(report))
        return []
    rows: list[Row] = []
    deadline = time.perf_counter() + arguments.budget
    for shape, problem in problems(arguments):
        left = deadline - time.perf_counter()
        if left > 0:
            rows += fastest(shape, problem, replace(arguments, budget=left), device, report)
        else:
            report.miss(f"{shape}, {problem.dtype}", "no time left: raise --budget", back=problem.back)
        report.notes[NOTE] = [asdict(row) for row in rows]
        report.save()
    show(table_of(rows), *missing(report))
    return rows


def problems(arguments: Arguments) -> Iterator[tuple[Shape, Problem]]:
    """Yield each layer once, forward and back, for each batch and dtype."""
    shapes = dict.fromkeys(shape for network in arguments.networks for shape in shapes_of(network))
    for shape in shapes:
        for batch in arguments.batches:
            for name in arguments.dtypes:
                dtype = str(DTYPES[name]).removeprefix("torch.")
                whole = asdict(shape)
                size = whole.pop("size")
                for back in (False, True):
                    yield (
                        shape,
                        Problem(**whole, height=size, width=size, batch=batch, dtype=dtype, back=back),
                    )


def fastest(
    shape: Shape, problem: Problem, arguments: Arguments, device: torch.device, report: Report
) -> list[Row]:
    """Measure a layer's tiles; a list with the row of the fastest, or empty where none runs."""
    count = sets_beyond_cache(shape.bytes_moved(problem.batch, problem.back), device, most=16)
    dtype = getattr(torch, problem.dtype)
    sets = [tensors_of(shape, problem.batch, dtype, device) for _ in range(count)]
    labels = {"layer": str(shape), "batch": problem.batch, "dtype": problem.dtype, "back": problem.back}
    runs: dict[str, tuple[Run, int]] = {}
    named: dict[str, Tile] = {}
    for tile in tiles.tiles_of(device)[: arguments.most]:
        try:
            calls = [partial(own_call, shape, problem.back, tile, one) for one in sets]
            calls[0]()
            runs[str(tile)], named[str(tile)] = replayed(calls, device), tile
        except Exception as error:  # A GPU may have too little shared memory for it.
            report.miss(str(tile), one_line(error)[:200], **labels)
    rounds = alternate({name: run for name, (run, _) in runs.items()}, device, arguments.duration())
    micro = {name: [1e6 * one / runs[name][1] for one in found.seconds] for name, found in rounds.items()}
    records = [record(name, times, "µs", **labels) for name, times in micro.items()]
    report.add(*records)
    best = min(records, key=lambda one: one.value, default=None)
    if best is None:
        return []
    return [Row(torch.cuda.get_device_name(device), problem, named[best.name], round(best.value, 2))]


def table_of(rows: Sequence[Row]) -> Table:
    """Return the fastest tiles, and what a run would take without having measured."""
    table = Table("layer", "batch", "dtype", "way", "fastest", "µs", "without a measurement")
    for row in rows:
        of = row.problem
        layer = str(Shape(of.side, of.stride, of.into, of.out, of.height))
        usual = tiles.usual_tile(of)
        way = "back" if of.back else "forward"
        table.add_row(layer, str(of.batch), of.dtype, way, str(row.tile), short(row.microseconds), str(usual))
    return table


if __name__ == "__main__":
    start(main, Arguments)
