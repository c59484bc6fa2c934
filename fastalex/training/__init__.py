"""One training run, from options to results.

``resolve`` turns the options into a ``RunConfig``; ``train`` runs it on one worker: epochs, validation, checkpoints.
The run folder holds everything that resuming needs.
"""

from fastalex.training.config import RunConfig
from fastalex.training.state import TrainingState

__all__ = ["RunConfig", "TrainingState"]
