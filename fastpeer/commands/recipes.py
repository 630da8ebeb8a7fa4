"""`fastpeer recipes`: what can be trained by name."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fastpeer.errors import UserError
from fastpeer.recipe import DEFAULT_RECIPE, load_recipe, recipe_names


def recipes_command(words: Sequence[str]) -> None:
    """Print the shipped recipes with what the paper reports for them."""
    if words:
        raise UserError("fastpeer recipes takes no options")
    table = Table(title="shipped recipes; the paper's accuracies in %")
    for heading in ("recipe", "student", "peer", "data", "epochs", "paper", "clean", "FGSM", "PGD-20", "AA"):
        table.add_column(heading)
    for name in recipe_names():
        config = load_recipe(name)
        paper = config.paper
        figures = [paper.row, paper.clean, paper.fgsm, paper.pgd20, paper.aa] if paper else [""] * 5
        label = f"{name} (default)" if name == DEFAULT_RECIPE else name
        settings = (config.model.student, config.model.peer, config.data.dataset, config.train.epochs)
        table.add_row(label, *map(str, settings), *map(str, figures))
    Console().print(table)
