"""Reproducible architectures, one per file."""

from .classifier import accuracy, classifier, load_classifier, train_classifier
from .dcgan import dcgan
from .fcgan import fcgan
from .hypergan import hypergan_state, hypergan_step, through
from .hypernetwork import Hypernetwork, autophagy
from .lqgan import lqgan, lqgan_influence

__all__ = ["Hypernetwork", "accuracy", "autophagy", "classifier", "dcgan", "fcgan", "hypergan_state", "hypergan_step", "load_classifier", "lqgan",
           "lqgan_influence", "through", "train_classifier"]
