"""``smallvit recipes``."""

from cyclopts import App
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from smallvit.core.console import console
from smallvit.core.errors import ConfigError
from smallvit.run.recipe import check_recipe, find_recipe, read_layer, recipes_root, shipped

recipes_command = App(
    name="recipes", help="List, show and check recipes.", result_action="return_value"
)


@recipes_command.command
def ls() -> None:
    """List shipped recipes with what was measured with them."""
    table = Table("recipe", "for", "measured")
    for name in shipped():
        values = read_layer(recipes_root() / f"{name}.yaml").values
        table.add_row(name, values.get("description", ""), values.get("expected") or "not yet")
    Console().print(table)


@recipes_command.command
def show(name: str, /) -> None:
    """Print a recipe.

    Args:
        name: Shipped recipe or file.
    """
    console = Console()
    text = find_recipe(name).read_text()
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True, end="")


@recipes_command.command
def check(name: str, /) -> None:
    """Resolve a recipe, build its networks, and say every error at once.

    Args:
        name: Shipped recipe or file.
    """
    path = find_recipe(name)
    errors = check_recipe(path)
    for error in errors[:-1]:
        console.print(f"smallvit: {error}", markup=False, highlight=False, soft_wrap=True)
    if errors:
        raise ConfigError(errors[-1])
    Console().print(f"{path}: fine", highlight=False, soft_wrap=True)
