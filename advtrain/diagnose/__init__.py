"""Is this robustness real? Named checks for gradient masking, the cause behind it, and what to do next."""

from .diagnosis import Curve, Diagnosis, Finding
from .run import diagnose

__all__ = ["Curve", "Diagnosis", "Finding", "diagnose"]
