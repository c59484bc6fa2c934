"""Injecting faults into commands: kills, flipped bits and full disks, each compared with an undisturbed run."""
