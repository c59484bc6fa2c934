"""What training a network needs before it starts: parameters, arithmetic, memory per device, and time.

Memory is counted from the network's shapes. Speed is measured here with the real training step, or looked up in
``speeds.json``, a small table of speeds measured on other machines.
"""

from fastalex.planning.options import PlanOptions, TrainingPlan, resolve
from fastalex.planning.report import report
from fastalex.planning.speed import Speed, known_speeds, measure_speed

__all__ = ["PlanOptions", "Speed", "TrainingPlan", "known_speeds", "measure_speed", "report", "resolve"]
