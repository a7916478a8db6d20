"""Training under recipes that make a model easy to compress: one loop, small recipes.

train_folder          a model folder in, an ordinary model folder out
train                 the loop itself, on a model in memory
registry.recipe_named "bdwp@format=sparse2of4" -> a recipe; ``recipes/`` holds one file for each
"""

from blockwright.training.folder import Trained, train_folder
from blockwright.training.loop import Entry, mean_loss, train
from blockwright.training.losses import token_losses
from blockwright.training.recipe import Moment, Place, Scope, TrainedMatrix, TrainingRecipe
from blockwright.training.settings import TrainingSettings
from blockwright.training.windows import TokenStream

__all__ = [
    "Entry",
    "Moment",
    "Place",
    "Scope",
    "TokenStream",
    "Trained",
    "TrainedMatrix",
    "TrainingRecipe",
    "TrainingSettings",
    "mean_loss",
    "token_losses",
    "train",
    "train_folder",
]
