"""How a network is trained, as data: recipes, their changes over the epochs, and the update rule that applies them.

``schedule`` holds the data classes, ``published`` the named recipes, ``edits`` the changes that a user makes to a run
by hand, and ``optimizer`` the 2012 update rule. The package knows nothing of networks, devices or training runs.
"""

from typing import TYPE_CHECKING

from fastalex.startup import attributes_on_demand

if TYPE_CHECKING:
    from fastalex.recipes.optimizer import KrizhevskySGD
    from fastalex.recipes.published import RECIPES, build_recipe
    from fastalex.recipes.schedule import Change, Plateau, Recipe

__all__ = ["RECIPES", "Change", "KrizhevskySGD", "Plateau", "Recipe", "build_recipe"]

# Imported when they are first used: options need the plain data of this package, without PyTorch.
_MODULES = {
    "KrizhevskySGD": "fastalex.recipes.optimizer",
    "RECIPES": "fastalex.recipes.published",
    "build_recipe": "fastalex.recipes.published",
    "Change": "fastalex.recipes.schedule",
    "Plateau": "fastalex.recipes.schedule",
    "Recipe": "fastalex.recipes.schedule",
}

__getattr__ = attributes_on_demand(__name__, _MODULES)
