"""Measures launch settings on a GPU and writes its table in `kernels/tuned/`."""
