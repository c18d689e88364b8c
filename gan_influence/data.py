"""Data sets: train, validation and test parts as tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MEAN = np.array([1.0, 1.0])
COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])


class Split(NamedTuple):
    """Three disjoint parts of a data set, (n, ...) each."""

    train: Tensor
    valid: Tensor
    test: Tensor


def normal_2d(train: int = 10_000, valid: int = 1_000, test: int = 1_000, seed: int = 0, dtype: torch.dtype = torch.float64) -> Split:
    """Draw the 2D-normal data set: mean (1, 1), unit variances, covariance 0.8.

    Args:
        train, valid, test: number of instances of each part.
        seed: any non-negative integer; the three parts never share draws, and one part's size does not change another part.
        dtype: of the tensors.

    Source: Terashita et al., ICLR 2021, section 5 (2D-Normal).

    >>> normal_2d(train=5, valid=2, test=2).train.shape
    torch.Size([5, 2])
    """
    def draw(part: int, n: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([seed, part]).multivariate_normal(MEAN, COVARIANCE, n, method="cholesky")).to(dtype)

    return Split(draw(0, train), draw(1, valid), draw(2, test))
