"""GAN evaluation metrics: scalars that are differentiable in the state, in memory that does not grow with the sample."""

from .discriminator import DiscriminatorLoss
from .distances import KernelDistance, SlicedWasserstein
from .images import FrechetDistance, InceptionScore, LogInceptionScore
from .likelihood import AverageLogLikelihood

__all__ = ["AverageLogLikelihood", "DiscriminatorLoss", "FrechetDistance", "InceptionScore", "KernelDistance", "LogInceptionScore", "SlicedWasserstein"]
