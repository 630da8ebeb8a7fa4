"""Which tile a convolution takes: measured, of the nearest batch, on that very GPU; else by a rule."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from fastpeer.kernels import convolution_tiles as tiles
from fastpeer.kernels.convolution_tiles import Problem, Row, Tile

CUDA = torch.device("cuda", 0)
PROBLEM = Problem(3, 1, 64, 64, 32, 32, 128, "bfloat16", back=False)
SMALL, LARGE = Tile(64, 64, 4, 3), Tile(256, 128, 8, 3)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write the user's table, on a machine with some GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "a GPU")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    path = tmp_path / "fastpeer" / tiles.TABLE
    path.parent.mkdir()

    def write(content):
        tiles._rows_on.cache_clear()
        path.write_text(content if isinstance(content, str) else json.dumps([asdict(row) for row in content]))

    yield write
    tiles._rows_on.cache_clear()


def row(batch, tile, device="a GPU", **more):
    return Row(device, replace(PROBLEM, batch=batch, **more), tile, 1.0)


def test_the_nearest_batchs_row_decides_if_all_else_is_the_same(written):
    written([row(64, SMALL), row(512, LARGE), row(128, LARGE, back=True), row(128, LARGE, "another GPU")])
    assert tiles.tile_for(PROBLEM, CUDA, boxes=True) == SMALL
    assert tiles.tile_for(replace(PROBLEM, batch=300), CUDA, boxes=True) == LARGE
    other = replace(PROBLEM, dtype="float16")
    assert tiles.tile_for(other, CUDA, boxes=True) == tiles.usual_tile(other)
    # Without the copy engine another kernel runs, which was not measured.
    assert tiles.tile_for(PROBLEM, CUDA, boxes=False) == tiles.usual_tile(PROBLEM, boxes=False)


@pytest.mark.parametrize("content", ["[", "[1]", "{}x", '[{"device": 1}]', [row(1, SMALL)]])
def test_a_damaged_table_costs_a_warning_and_nothing_else(written, content, caplog):
    if not isinstance(content, str):
        content = json.dumps([asdict(one) for one in content]).replace('"warps": 4', '"warps": 3')
    written(content)
    assert tiles.tile_for(PROBLEM, CUDA, boxes=True) == tiles.usual_tile(PROBLEM)
    assert [line.count("so it is not used") for line in caplog.messages] == [1]


def test_a_processor_goes_by_the_rule():
    assert tiles.tile_for(PROBLEM, torch.device("cpu"), boxes=True) == Tile(128, 128, 8, 3)
    assert tiles.tile_for(replace(PROBLEM, stride=2, height=16), torch.device("cpu"), True).stages == 4


def test_later_rows_replace_former_ones():
    found = tiles.merged([row(64, SMALL), row(128, SMALL)], [row(64, LARGE)])
    assert {one.problem.batch: one.tile for one in found} == {64: LARGE, 128: SMALL}
    assert tiles.read_rows(json.dumps([asdict(one) for one in found])) == found
