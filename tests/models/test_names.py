import subprocess
import sys

import pytest

from fastpeer.errors import UserError
from fastpeer.models import build_model, check_model_name, model_names


@pytest.mark.parametrize("name", [*model_names(), "wideresnet10x1", "wideresnet16x8"])
def test_valid_names_are_accepted(name: str) -> None:
    check_model_name(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet81", "resnet8, "),
        ("ResNet18", "resnet18"),
        ("wideresnet34-10", "wideresnet34x10"),
        ("wideresnet30x10", "6n+4"),
        ("wideresnet4x1", "6n+4"),
        ("wideresnet10x0", "wideresnet"),
        ("wideresnet010x1", "wideresnet"),
        ("wideresnet" + "1" * 5000 + "x1", "wideresnet"),
        ("vgg", "mobilenetv2"),
        ("", "resnet18"),
        ("resnet18\n", "resnet18"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        check_model_name(name)
    assert hint in str(caught.value).partition("; ")[2]
    assert "\n" not in str(caught.value)


def test_build_refuses_unknown_name() -> None:
    with pytest.raises(UserError, match="no network 'resnet19'"):
        build_model("resnet19", 10)


def test_names_need_no_torch() -> None:
    use = "from fastpeer.models import build_model, check_model_name; check_model_name('resnet18')"
    code = f"import sys; {use}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
