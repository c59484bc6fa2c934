"""Evaluation of trained networks: error rates of one network or an ensemble, predictions, and activations.

Nothing here trains. A network is read from a run folder or a weights file and runs on one device, or as a pipeline over
several. :func:`evaluate` returns predictions and errors on a labelled split; :func:`extract` writes activations to
NumPy files.
"""

from fastalex.evaluation.ensemble import Evaluation, EvaluationResult, Predictions, evaluate
from fastalex.evaluation.features import Extraction, extract
from fastalex.evaluation.trained_network import TrainedNetwork, inference_plan

__all__ = [
    "Evaluation",
    "EvaluationResult",
    "Extraction",
    "Predictions",
    "TrainedNetwork",
    "evaluate",
    "extract",
    "inference_plan",
]
