"""The parts of `bench/host.py`: what is called, and the two ways from a call to its launches."""
