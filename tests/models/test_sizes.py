"""Networks that are too large are refused before they are built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastpeer.config import Config, ModelConfig
from fastpeer.errors import UserError
from fastpeer.models import build_model, sizes
from fastpeer.models.sizes import machine_memory, wide_resnet_parameters
from fastpeer.training.networks import build_networks


@pytest.mark.parametrize(
    ("name", "classes"), [("wideresnet10x1", 7), ("wideresnet16x2", 1), ("wideresnet28x10", 10)]
)
def test_parameters_are_counted_as_pytorch_counts_them(name: str, classes: int) -> None:
    with torch.device("meta"):
        network = build_model(name, classes)
    assert wide_resnet_parameters(name, classes) == sum(weights.numel() for weights in network.parameters())


def test_the_largest_name_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"wideresnet994x999 has [\d,]+ parameters: at least [\d,.]+ GB"):
        build_model("wideresnet994x999", 10)


def test_a_training_needs_more_than_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(model=ModelConfig(student="wideresnet10x1", peer="wideresnet10x1"))
    monkeypatch.setattr(sizes, "machine_memory", lambda: 5 * 4 * wide_resnet_parameters("wideresnet10x1", 10))
    build_model("wideresnet10x1", 10)
    with pytest.raises(UserError, match="of memory are needed"):
        build_networks(config, config.table, 10, torch.device("cpu"))


@pytest.mark.parametrize(("limit", "bounds"), [("4096\n", True), ("max\n", False)])
def test_a_container_s_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, bounds: bool
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(sizes, "CONTAINER_LIMIT", tmp_path / "memory.max")
    assert (machine_memory() == 4096) == bounds
