"""Reproducible architectures, one per file."""

from .classifier import accuracy, classifier, load_classifier, train_classifier
from .dcgan import dcgan
from .fcgan import fcgan
from .lqgan import lqgan, lqgan_influence

__all__ = ["accuracy", "classifier", "dcgan", "fcgan", "load_classifier", "lqgan", "lqgan_influence", "train_classifier"]
