"""Recipes of alignment: each is a class whose fields are its options, named by `kind` in its YAML.

Importing this room registers them, and imports no torch.
"""

from holdfast.recipes import gradient, zeroth_order
from holdfast.recipes.recipe import RECIPES, Recipe, Trained

__all__ = ["RECIPES", "Recipe", "Trained", "gradient", "zeroth_order"]
