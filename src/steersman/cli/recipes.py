"""``steersman recipes``: what recipes there are, what one says, and the axes with their options."""

from typing import Annotated

from steersman.cli.options import Context, RecipeName, argument
from steersman.cli.root import Commands, Terminal
from steersman.errors import unknown

__all__ = ["app"]

app = Commands(help="List the recipes, explain one, or list the axes of a recipe.", invoke_without_command=True)


@app.callback()
def recipes(context: Context) -> None:
    """List the recipes, explain one, or list the axes of a recipe."""
    if context.invoked_subcommand is None:
        from steersman.recipes import load_recipe, recipe_names

        found = map(load_recipe, recipe_names(variants=False))
        rows = [(each.name, each.title, each.paper.split(",")[0] or "ours", ", ".join(each.variants)) for each in found]
        Terminal().table(("recipe", "what it is", "paper", "variants"), rows, texts=4)


@app.command()
def show(name: RecipeName) -> None:
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
def axes(
    axis: Annotated[str | None, argument("Axis, such as particles; by default all of them.")] = None,
) -> None:
    """Explain each axis of a recipe, its options and their settings, as --set AXIS.OPTION=VALUE takes them.

    Example: steersman recipes axes particles
    """
    from steersman.recipes.axes import AXES, default_of, describe, meanings_of, settings_of
    from steersman.recipes.schema import EXTRA

    if axis not in (None, *AXES, EXTRA):
        raise unknown("axis", axis, [*AXES, EXTRA], most=len(AXES) + 1)
    rows = []
    for name in AXES if axis is None else [axis] if axis in AXES else []:
        kinds = AXES[name]
        for kind, option in kinds.items():
            default = " The default." if len(kinds) > 1 and kind == next(iter(kinds)) else ""
            rows.append((name if len(kinds) == 1 else f"{name}={kind}", f"{describe(option)}{default}"))
            meanings = meanings_of(option)
            for key, field in settings_of(option).items():
                rows.append((f"  {name}.{key}={_text(default_of(field))}", meanings.get(key, "")))
    if axis in (None, EXTRA):
        rows.append((EXTRA, "Further guides, a list of mappings, each as the first guide but for the axes in it."))
    Terminal().table(("setting=default", "what it is"), rows, texts=2)


def _text(default: object) -> str:
    """Returns a default as --set takes it."""
    if isinstance(default, tuple):
        return f"[{', '.join(map(_text, default))}]"
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)
