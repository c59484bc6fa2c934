"""The parts of `bench/gpu.py`: correctness and speed on one GPU within a fixed time.

`plan` lists the jobs with their time limits, `processes` runs each job in its own process group, `pytest_log` is the
pytest plugin that writes every test's outcome as it ends, `outcome` judges a job, `claims` compares what was measured
with the committed records, and `report` prints.
"""
