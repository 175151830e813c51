"""The method's public name of the learning-rate schedule; the optimiser is :mod:`core.runs.solver`."""

from core.runs.solver import poly_lr

__all__ = ["poly_lr"]
