"""Temporal Preference Optimization for video language models, native to JAX on TPU."""

__version__ = "0.1.0"
