"""Reproducible architectures, one per file."""

from .fcgan import fcgan
from .lqgan import lqgan, lqgan_influence

__all__ = ["fcgan", "lqgan", "lqgan_influence"]
