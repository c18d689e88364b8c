"""What a run assumes of its data and of torch, and the sentences where it is not so."""

import os

import torch
from torch import Tensor

from ..game.gan import GAN

IMPORTED_BY = os.getpid()  #: the process whose threads torch may have started


def instances(gan: GAN, x) -> Tensor:
    """A training set as a tensor of the GAN's floating type on the GAN's device, checked.

    Raises:
        ValueError: when it is empty, holds numbers that are not finite, or lies on another device than the networks.
    """
    for sign, seen, advice in (("_fields", "several parts", "pass one of them, such as data.train"), ("dataset", "a loader", "pass the tensor it draws from"),
                               ("to_numpy", "a table", "pass its to_numpy()")):
        if hasattr(x, sign):
            raise ValueError(f"a training set is one tensor or array, (n, ...), but got {seen}, {type(x).__name__}: {advice}")
    try:
        x = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a training set is one tensor or array, (n, ...), but got {type(x).__name__} ({error})") from error
    if x.layout != torch.strided or x.is_complex():
        raise ValueError(f"a training set is a dense tensor of real numbers, but got {'complex ones' if x.is_complex() else x.layout}: convert it first")
    if x.device != gan.device:
        raise ValueError(f"the data lies on {x.device} and the networks on {gan.device}: move one of them, e.g. x.to({str(gan.device)!r})")
    x = x.detach().to(gan.dtype)
    if x.ndim < 2 or not len(x):
        raise ValueError(f"a training set is (n, ...) with n at least 1, got shape {tuple(x.shape)}")
    if not x.isfinite().all():
        bad = (~x.flatten(1).isfinite().all(1)).nonzero()[0].item()
        raise ValueError(f"training instances must be finite, but instance {bad} holds a NaN or an infinity: take it out")
    return x


def refuse_other_modes(device: torch.device) -> None:
    """Refuse to compute where torch computes otherwise: under autocast or inference mode, or in a child forked beside torch's threads.

    Raises:
        RuntimeError: with what to do.
    """
    if torch.is_autocast_enabled(device.type):
        raise RuntimeError("training and its replay assume one floating type, but autocast is on: call this outside of it")
    if torch.is_inference_mode_enabled():
        raise RuntimeError("influence assumes that torch may differentiate, but inference mode is on: call this outside of it; torch.no_grad() does no harm")
    if os.getpid() != IMPORTED_BY and torch.get_num_threads() > 1:
        raise RuntimeError("torch's threads do not survive a fork, and computing here could wait for them for ever: call torch.set_num_threads(1) in the "
                           "child first, or start it by the method 'spawn' or 'forkserver'")
