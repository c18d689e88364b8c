"""What is played: two networks, what each of them pays, and the state that training changes."""

from .gan import GAN
from .losses import LOSSES, Loss
from .penalties import R1, GradientPenalty
from .state import State, stack, unstack

__all__ = ["GAN", "GradientPenalty", "LOSSES", "Loss", "R1", "State", "stack", "unstack"]
