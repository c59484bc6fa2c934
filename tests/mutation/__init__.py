"""Parts of ``tests/mutate.py``, which makes faults in a copy of the code and runs the matching tests."""
