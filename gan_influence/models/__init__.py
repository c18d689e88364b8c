"""Reproducible architectures, one per file."""

from .adapters import adapted
from .classifier import accuracy, classifier, load_classifier, train_classifier
from .dcgan import dcgan
from .fcgan import fcgan
from .hypergan import hypergan_state, hypergan_step, through
from .hypernetwork import Hypernetwork, autophagy
from .lqgan import lqgan, lqgan_influence
from .stylegan import stylegan

__all__ = ["Hypernetwork", "accuracy", "adapted", "autophagy", "classifier", "dcgan", "fcgan", "hypergan_state", "hypergan_step", "load_classifier", "lqgan",
           "lqgan_influence", "stylegan", "through", "train_classifier"]
