"""Originals to prepare, and how long their preparation takes."""
