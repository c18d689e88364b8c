"""What a run assumes of its networks and of torch, and the sentences where it is not so."""

import os

import torch

from ..game.gan import GAN
from ..game.trial import check_game
from .rows import Rows

IMPORTED_BY = os.getpid()  #: the process whose threads torch may have started


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


def try_networks(gan: GAN, rows: Rows, schedule, confirmed: bool = False) -> None:
    """Try both networks on a few rows and latents of a run; see `check_game`."""
    few = torch.arange(min(4, len(rows)))
    x, (z, _) = rows.take(few), schedule.latents(0)
    z = tuple(z) if isinstance(z, tuple) else (z, *(column.cpu() for column in x[1:gan.apply_generator.takes]))
    z = tuple((column if len(column) >= len(few) else column.repeat(len(few), *[1] * (column.ndim - 1)))[:len(few)].to(x[0].device) for column in z)
    check_game(gan, x, (z[0].to(rows.dtype), *z[1:]), (rows.low, rows.high), confirmed)
