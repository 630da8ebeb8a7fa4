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
    table = Table(title="shipped recipes, and the accuracies in % that the paper reports for them")
    table.add_column("recipe", no_wrap=True)
    for heading in ("clean", "FGSM", "PGD-20", "AA"):
        table.add_column(heading, justify="right")
    for name in recipe_names():
        paper = load_recipe(name).paper
        figures = (paper.clean, paper.fgsm, paper.pgd20, paper.aa) if paper else ()
        label = f"{name} (default)" if name == DEFAULT_RECIPE else name
        table.add_row(label, *(f"{figure:.2f}" for figure in figures))
    console = Console()
    console.print(table)
    console.print("demo: handwritten digits on a CPU, in a few minutes; its data set is not the paper's")
