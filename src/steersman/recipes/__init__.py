from steersman.names import recipe_names
from steersman.recipes.axes import register
from steersman.recipes.schema import Guides, Recipe, load_recipe

__all__ = ["Guides", "Recipe", "load_recipe", "recipe_names", "register"]
