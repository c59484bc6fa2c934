"""How a network is trained, as data: recipes, their changes over the epochs, and the update rule that applies them.

``schedule`` holds the data classes, ``published`` the named recipes, ``edits`` the changes that a user makes to a run
by hand, and ``optimizer`` the 2012 update rule. The package knows nothing of networks, devices or training runs.
"""

from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import RECIPES, build_recipe
from fastalex.recipes.schedule import Change, Plateau, Recipe

__all__ = ["RECIPES", "Change", "KrizhevskySGD", "Plateau", "Recipe", "build_recipe"]
