"""The method in docs/methods.md works as it stands there."""

import re
import sys
from pathlib import Path

import torch

from fastpeer.config import AttackConfig, Config
from fastpeer.data.stream import Batch
from fastpeer.methods import loss_settings, method_names
from fastpeer.models import build_model
from fastpeer.step.step import TrainingStep

GUIDE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text("utf-8")


def test_the_guides_own_method_trains(tmp_path, monkeypatch):
    code = re.search(r"```python\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL)
    file = tmp_path / code[1]
    file.parent.mkdir()
    file.write_text(code[2], "utf-8")
    monkeypatch.chdir(tmp_path)
    name = code[1].removesuffix(".py").replace("/", ".")
    try:
        loss = loss_settings(name)(pairing=0.2)
        config = Config(method=name, loss=loss, attack=AttackConfig(steps=1))
        step = TrainingStep(config, config.table, {"student": build_model("resnet8", 10)})
        result = step.train_on(Batch(torch.rand(4, 3, 8, 8), torch.arange(4)), 0)
    finally:
        for module in [one for one in sys.modules if one.startswith("my_methods")]:
            del sys.modules[module]
    assert result.losses.shape == (2,)
    assert torch.isfinite(result.losses).all()


def test_the_guide_names_every_method():
    rows = re.findall(r"^\| `([a-z][a-z0-9-]*)` \| ", GUIDE, re.MULTILINE)
    assert sorted(rows) == method_names()
