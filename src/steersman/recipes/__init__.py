from steersman.recipes.axes import register
from steersman.recipes.schema import Guides, Recipe, load_recipe, recipe_names

__all__ = ["Guides", "Recipe", "load_recipe", "recipe_names", "register"]
