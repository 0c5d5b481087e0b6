"""``steersman recipes``: what recipes there are, what one says, and the axes with their options."""

from typing import Annotated

import typer

from steersman.cli.options import Context, argument
from steersman.cli.root import Terminal

__all__ = ["app"]

app = typer.Typer(help="List the recipes, explain one, or list the axes of a recipe.", invoke_without_command=True)


@app.callback()
def recipes(context: Context) -> None:
    """List the recipes, explain one, or list the axes of a recipe."""
    if context.invoked_subcommand is None:
        from steersman.recipes import load_recipe, recipe_names

        found = map(load_recipe, recipe_names(variants=False))
        rows = [(each.name, each.title, each.paper.split(",")[0] or "ours", ", ".join(each.variants)) for each in found]
        Terminal().table(("recipe", "what it is", "paper", "variants"), rows, texts=4)


@app.command()
def show(name: Annotated[str, argument("Recipe: name, name/variant or YAML file.")]) -> None:
    """Explain one recipe: its paper, all its settings, and the figures it should reach."""
    import yaml

    from steersman.recipes import load_recipe

    recipe, terminal = load_recipe(name), Terminal()
    terminal.print(f"{recipe.name}: {recipe.title}", style="bold")
    for title, text in (("paper", recipe.paper), ("equations", recipe.equations), ("notes", recipe.notes)):
        if text:
            terminal.print(f"{title}: {text.strip()}")
    for figure in recipe.expected:
        terminal.print(f"expected: {figure}")
    terminal.print(yaml.safe_dump(recipe.resolved(), sort_keys=False, default_flow_style=None), end="")


@app.command()
def axes() -> None:
    """List each axis of a recipe, its options and their settings, as --set AXIS.OPTION=VALUE takes them."""
    from steersman.recipes.axes import AXES, default_of, describe, settings_of

    rows = []
    for axis, kinds in AXES.items():
        for index, (kind, option) in enumerate(kinds.items()):
            settings = ", ".join(f"{axis}.{key}={default_of(field)}" for key, field in settings_of(option).items())
            rows.append(("" if index else axis, kind if len(kinds) > 1 else "", settings, describe(option)))
    further = "Further guides, each as the first but for these axes."
    rows.append(("extra_guides", "", "extra_guides=[{AXIS: ...}, ...]", further))
    Terminal().table(("axis", "option", "settings", "what it is"), rows, texts=4)
