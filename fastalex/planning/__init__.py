"""What training a network needs before it starts: parameters, arithmetic, memory per device, and time.

Memory is counted from the network's shapes. Speed is measured here with the real training step, or looked up in
``speeds.json``, a small table of speeds measured on other machines. :mod:`~fastalex.planning.drawing` draws the network
over its stages.
"""

from fastalex.planning.drawing import draw_network
from fastalex.planning.options import PlanOptions, TrainingPlan, resolve
from fastalex.planning.report import report
from fastalex.planning.speed import Speed, known_speeds, measure_speed

__all__ = ["PlanOptions", "Speed", "TrainingPlan", "draw_network", "known_speeds", "measure_speed", "report", "resolve"]
