"""The search for the fastest launch settings of a GPU."""
