"""Measuring pipelines and replicas, and predicting them from the costs of single blocks."""
