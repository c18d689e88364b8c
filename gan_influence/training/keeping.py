"""Which states a run keeps, and what they cost."""

from ..game.gan import GAN
from ..game.state import State
from ..tools.checks import whole
from .dynamics import Dynamics
from .optimizers import SGD

DENSE_BYTES = 512 * 2**20  #: of an epoch's states that are all kept without being asked for


def default_stride(steps: int, steps_per_epoch: int) -> int:
    """Steps between kept states: about ½√T, dividing an epoch, so that memory and replay both grow like √T.

    >>> default_stride(5000, 100)
    25
    """
    return max(d for d in range(1, steps_per_epoch + 1) if steps_per_epoch % d == 0 and (d == 1 or 4 * d * d <= steps))


def default_dense_epochs(state: State, steps_per_epoch: int) -> int:
    """Last epochs of which every state is kept: one for convolutional networks, if it takes no more than DENSE_BYTES; else none.

    >>> import gan_influence as gi
    >>> default_dense_epochs(gi.models.dcgan().state(), 500), default_dense_epochs(gi.models.fcgan().state(), 500)
    (1, 0)
    """
    convolutional = any(p.ndim > 2 for p in state.tensors())
    return int(convolutional and steps_per_epoch * state.nbytes <= DENSE_BYTES)


def kept_steps(state: State, steps: int, steps_per_epoch: int, stride: int, dense_epochs: int | None) -> set[int]:
    """Which of the states 0..T a run keeps: one every `stride` steps, all of the last `dense_epochs` epochs, and the last.

    >>> import gan_influence as gi
    >>> sorted(kept_steps(gi.models.fcgan().state(), steps=8, steps_per_epoch=2, stride=3, dense_epochs=1))
    [0, 3, 6, 7, 8]
    """
    dense_epochs = default_dense_epochs(state, steps_per_epoch) if dense_epochs is None else whole("dense_epochs", dense_epochs, least=0)
    return {*range(0, steps, stride), *range(max(0, steps - dense_epochs * steps_per_epoch), steps + 1)}


def trajectory_bytes(gan: GAN, n: int, epochs: int, batch_size: int = 100, optimizer=None, stride: int | None = None, dense_epochs: int | None = None,
                     average: float | None = None) -> int:
    """What a run's kept states will occupy, in bytes, before it is trained.

    >>> import gan_influence as gi
    >>> trajectory_bytes(gi.models.fcgan(), n=10_000, epochs=50) / 2**20  # MiB
    8.73486328125
    """
    steps_per_epoch = n // batch_size
    steps, state = epochs * steps_per_epoch, Dynamics(gan, optimizer or SGD(1e-3), average=average).initial()
    return len(kept_steps(state, steps, steps_per_epoch, stride or default_stride(steps, steps_per_epoch), dense_epochs)) * state.nbytes
