"""``smallvit recipes``."""

import json

from cyclopts import App
from rich.console import Console
from rich.syntax import Syntax

from smallvit.cli.options import Json
from smallvit.cli.tables import print_rows, print_text
from smallvit.core.console import say
from smallvit.core.errors import ConfigError
from smallvit.runs.recipe import check_recipe, find_recipe, read_layer, recipes_root, shipped

recipes_command = App(
    name="recipes", help="List, show and check recipes.", result_action="return_value"
)


@recipes_command.command
def ls(*, as_json: Json = False) -> None:
    """List shipped recipes with what was measured with them.

    Args:
        as_json: Print them as JSON.
    """
    found = {name: read_layer(recipes_root() / f"{name}.yaml").values for name in shipped()}
    if as_json:
        keys = ("description", "expected")
        plain = [
            {"recipe": name, **{key: values.get(key) for key in keys}}
            for name, values in found.items()
        ]
        print(json.dumps(plain, indent=2))  # noqa: T201
        return
    rows = [
        (name, values.get("description", ""), values.get("expected") or "not yet")
        for name, values in found.items()
    ]
    print_rows(("recipe", "for", "measured"), rows, wrap=("for", "measured"))


@recipes_command.command
def show(name: str, /) -> None:
    """Print a recipe.

    Args:
        name: Shipped recipe or file.
    """
    console = Console()
    text = find_recipe(name).read_text(encoding="utf-8")
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
        say(f"smallvit: {error}")
    if errors:
        raise ConfigError(errors[-1])
    print_text(f"{path}: fine")
