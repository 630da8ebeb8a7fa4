"""The shipped recipes: a few are written out, the others are composed from the parts of their names.

In `fastpeer/recipes/`:

    paper.toml           every composed recipe's name, with the paper's figures
    methods/METHOD.toml  a method's settings, and under [for.PART] what differs for a part of a name
    common.toml          the same for all methods
    tables.toml          the paper's other figures, for `fastpeer eval --table`
    any other NAME.toml  the recipe NAME, written out
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property, reduce
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from fastpeer.config import Config
from fastpeer.config.toml import read_table
from fastpeer.errors import UserError, shown
from fastpeer.suggestions import did_you_mean

if TYPE_CHECKING:
    from importlib.abc import Traversable

PARTS = ("paper", "common", "tables")
"""Files beside the recipes that are written out, which are none themselves."""

Table = dict[str, Any]


class RecipeName(NamedTuple):
    """A composed recipe's name by its parts: DATA-NETWORK[-METHOD][-VARIANT]."""

    data: str
    network: str
    method: str
    variant: str

    def __str__(self) -> str:
        method = "" if self.method == Config.method else self.method
        return "-".join(filter(None, (self.data, self.network, method, self.variant)))

    @property
    def sections(self) -> tuple[str, ...]:
        """What this recipe takes of the sections [for.…] in a file, where it is there; the last one wins."""
        return self.network, self.data, f"{self.data}-{self.network}", self.variant


class ShippedRecipes:
    """The shipped recipes' settings, by name; each file is read once at most, and only if it is asked for."""

    def __init__(self) -> None:
        folder = resources.files("fastpeer.recipes")
        files = _toml_files(folder)
        self._parts = {name: files.pop(name) for name in PARTS}
        self._written_out = files
        self._method_files = _toml_files(folder / "methods")
        self._methods: dict[str, Table] = {}

    @cached_property
    def names(self) -> list[str]:
        """Of all of them, sorted."""
        return sorted([*self._written_out, *self._figures])

    def table(self, name: str, children: tuple[str, ...] = ()) -> Table:
        """Return a recipe's settings as its TOML would hold them; `children` are like it."""
        parts = self.split(name)
        if parts is None:
            return self.complete(_read(self._written_out[name]), name, children)
        figures = self._figures[name]
        return self._compose(parts) | ({"paper": figures} if figures else {})

    def complete(self, table: Table, name: str, children: tuple[str, ...] = ()) -> Table:
        """Follow `like = RECIPE`: what a table leaves out is as in that shipped recipe.

        The paper's figures are its own, and so is the loss where the method is another.

        Raises:
            UserError: there is no such recipe, or it is like this one.
        """
        if "like" not in table:
            return table
        like, lineage = table["like"], (*children, name)
        if not isinstance(like, str) or like not in self.names or like in lineage:
            others = [known for known in self.names if known not in lineage]
            near = did_you_mean(like if isinstance(like, str) else "", others, "fastpeer recipes lists them")
            raise UserError(f"{name}: like must be a shipped recipe, got {shown(like)}; {near}")
        parent = self.table(like, lineage)
        method = parent.get("method", Config.method)
        dropped = ("paper",) if table.get("method", method) == method else ("paper", "loss")
        kept = {key: value for key, value in parent.items() if key not in dropped}
        return _merged(kept, {key: value for key, value in table.items() if key != "like"})

    def split(self, name: str) -> RecipeName | None:
        """Return the parts of a composed recipe's name; None if no composed recipe is called so."""
        if name not in self._figures:
            return None
        data, network, *rest = name.split("-")
        ending = "-".join(rest)
        # iad-ii is not the variant ii of iad.
        fitting = [method for method in self._method_files if f"{ending}-".startswith(f"{method}-")]
        method = max(fitting, key=len, default=Config.method)
        return RecipeName(data, network, method, ending.removeprefix(method).removeprefix("-"))

    def _compose(self, parts: RecipeName) -> Table:
        method, common = self._method(parts.method), self._common
        named = {"data": {"dataset": parts.data}, "model": {"student": parts.network}}
        # A method's own sections come last: AKD2's schedule for TinyImageNet is not that of the others.
        sections = (file.get("for", {}).get(key, {}) for file in (common, method) for key in parts.sections)
        table = reduce(_merged, (method, common, named, *sections))
        return {key: value for key, value in table.items() if key != "for"}

    @cached_property
    def tables(self) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """The paper's figures beside those of the recipes: rows by table, and their figures by row."""
        return _read(self._parts["tables"])

    @cached_property
    def _common(self) -> Table:
        return _read(self._parts["common"])

    @cached_property
    def _figures(self) -> dict[str, Table]:
        return dict(_paper_rows(_read(self._parts["paper"])))

    def _method(self, name: str) -> Table:
        if name not in self._methods:
            self._methods[name] = _read(self._method_files[name])
        return self._methods[name]


@cache
def shipped_recipes() -> ShippedRecipes:
    """Return the shipped recipes; a command asks for them several times."""
    return ShippedRecipes()


def _toml_files(folder: "Traversable") -> dict[str, "Traversable"]:
    files = (file for file in folder.iterdir() if file.name.endswith(".toml"))
    return {file.name.removesuffix(".toml"): file for file in files}


def _read(file: "Traversable") -> Table:
    return read_table(file.read_text("utf-8"), file.name)


def _paper_rows(sections: Table) -> Iterator[tuple[str, Table]]:
    """Yield each recipe's name with its `[paper]`, which is empty where the paper has no such row."""
    for section, rows in sections.items():
        for name, row in rows.items():
            if not row:
                yield name, {}
                continue
            label, *accuracies = row
            figures = dict(zip(("clean", "fgsm", "pgd20", "aa"), accuracies, strict=True))
            yield name, {"row": f"{section}, {label}", "dataset": name.split("-")[0], **figures}


def _merged(parent: Table, child: Table) -> Table:
    """Return the child's settings, and the parent's where the child has none."""
    merged = {**parent, **child}
    for name in parent.keys() & child.keys():
        if isinstance(parent[name], dict) and isinstance(child[name], dict):
            merged[name] = _merged(parent[name], child[name])
    return merged
