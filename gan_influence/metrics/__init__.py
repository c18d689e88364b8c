"""GAN evaluation metrics: scalars that are differentiable in the state, in memory that does not grow with the sample."""

from .discriminator import DiscriminatorLoss
from .distances import KernelDistance, SlicedWasserstein
from .images import FrechetDistance, InceptionScore, LogInceptionScore
from .likelihood import AverageLogLikelihood
from .minority import BalancedLikelihood, SoftShare, WeightedSum, enrichment, recall

__all__ = ["AverageLogLikelihood", "BalancedLikelihood", "DiscriminatorLoss", "FrechetDistance", "InceptionScore", "KernelDistance", "LogInceptionScore",
           "SlicedWasserstein", "SoftShare", "WeightedSum", "enrichment", "recall"]
