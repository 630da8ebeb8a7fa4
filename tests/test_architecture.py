"""The tree matches docs/architecture.md: no part imports from above, and no modules import in a circle."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
LAYERS = re.findall(r"^(\w+)  +\S", DOCUMENT.partition("```\n")[2].partition("```")[0], re.MULTILINE)
OUTSIDE = ("recipes", "__init__", "__main__")


def modules() -> dict[str, Path]:
    """Return the files of all modules by name within the package, such as step.loss."""
    files = [*(ROOT / "fastpeer").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    files += (ROOT / "data_prep").rglob("*.py")
    found = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[1:] if parts[0] == "fastpeer" else parts)
        found[name.removesuffix(".__init__")] = file
    return found


MODULES = modules()


def imported(file: Path) -> Iterator[tuple[str, bool]]:
    """Yield the modules of this package that a file imports, and whether it does so while it is imported."""
    tree = ast.parse(file.read_text("utf-8"))
    at_import = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastpeer":
            inside = (node.module or "").removeprefix("fastpeer").removeprefix(".")
            for alias in node.names:
                full = f"{inside}.{alias.name}".removeprefix(".")
                yield (full if full in MODULES else inside), id(node) in at_import


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_imported_from_above(name):
    layer = name.split(".")[0]
    if layer in OUTSIDE:
        return
    assert layer in LAYERS, f"docs/architecture.md has no {layer}"
    for other, _ in imported(MODULES[name]):
        above = other.split(".")[0]
        if above and above != "__version__":
            assert LAYERS.index(above) >= LAYERS.index(layer), f"{name} imports {other}, which is above it"


def test_no_modules_import_in_a_circle():
    edges = {name: {other for other, now in imported(file) if now} for name, file in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' → '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for other in edges.get(name, ()):
                # A package's __init__ may gather what its modules define.
                if other != name:
                    visit(other, (*way, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_every_file_that_the_document_names_is_there():
    for path in re.findall(r"`?\b((?:\w+/)+\w+\.py)\b`?", DOCUMENT):
        assert any((ROOT / start / path).is_file() for start in (".", "fastpeer")), path
