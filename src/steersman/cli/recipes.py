"""``steersman recipes``: what recipes there are, what one says, and the axes with their options."""

from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="List recipes, explain one, list the axes.", invoke_without_command=True)


@app.callback()
def recipes(context: typer.Context) -> None:
    """List recipes, explain one, list the axes."""
    if context.invoked_subcommand is None:
        from rich.console import Console
        from rich.table import Table

        from steersman.recipes import load_recipe, recipe_names

        table = Table("recipe", "what it is", "paper", "variants", box=None, pad_edge=False)
        for name in recipe_names(variants=False):
            recipe = load_recipe(name)
            table.add_row(name, recipe.title, recipe.paper.split(",")[0] or "ours", ", ".join(recipe.variants))
        Console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="Recipe: name, name/variant or file.")]) -> None:
    """Explain one recipe: its paper, its settings in full, and the figures it should reach."""
    import yaml
    from rich.console import Console

    from steersman.recipes import load_recipe

    recipe, console = load_recipe(name), Console(highlight=False)
    console.print(f"[bold]{recipe.name}[/bold]: {recipe.title}")
    for title, text in (("paper", recipe.paper), ("equations", recipe.equations), ("notes", recipe.notes)):
        if text:
            console.print(f"{title}: {text.strip()}", markup=False)
    for figure in recipe.expected:
        console.print(f"aims at: {figure}", markup=False)
    console.print(yaml.safe_dump(recipe.resolved(), sort_keys=False, default_flow_style=None), markup=False, end="")


@app.command()
def axes() -> None:
    """List every axis with its options and their settings, as ``--set axis.option=value`` takes them."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from steersman.recipes.axes import AXES, default_of, describe, settings_of

    table = Table("axis", "option", "settings", "what it is", box=None, pad_edge=False)
    for axis, kinds in AXES.items():
        for place, (kind, option) in enumerate(kinds.items()):
            settings = ", ".join(f"{axis}.{key}={default_of(field)}" for key, field in settings_of(option).items())
            name = kind if len(kinds) > 1 else ""
            table.add_row("" if place else axis, name, escape(settings), escape(describe(option)))
    table.add_row(
        "extra_guides", "", "extra_guides=[{AXIS: ...}, ...]", "Further guides, each as the first but for these axes."
    )
    Console().print(table)
