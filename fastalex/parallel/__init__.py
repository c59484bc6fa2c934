"""Which process computes what: devices and workers, the layout of replicas and pipeline stages, and the engines.

``launch`` (or ``torchrun``) starts one worker per device; each gets a ``World``. A ``ParallelPlan`` says which worker
computes which blocks, and ``build_engine`` makes this worker's engine, which computes the gradients of a batch.
"""

from fastalex.parallel.engine import Engine, WholeNetwork
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.parallel.pipeline import Pipeline, build_engine
from fastalex.parallel.world import World

__all__ = ["Engine", "Layout", "ParallelPlan", "Pipeline", "WholeNetwork", "World", "build_engine"]
