"""The settings on which attribution methods are compared: plain values, known without torch, and how each is trained."""

from dataclasses import dataclass

from .protocols import Protocol


@dataclass(frozen=True)
class Setting(Protocol):
    """A GAN on its data, one window, and how many instances are left out of it one at a time. `board` gives it `prepare` and `measure`."""

    n: int = 2_000
    epochs: int = 20
    learning_rate: float = 1e-2
    adam: bool = False  #: with batch normalisation in both players and alternating updates; else plain SGD, as published
    last_epochs: int = 5  #: the window
    instances: int = 200  #: left out, one at a time

    @property
    def rounds(self) -> list[list[str]]:
        """One piece a seed."""
        return [["bank"]]


ADAM = {"order": "alternating", "learning_rate": 2e-3, "adam": True, "activation": "tanh"}

#: By name: the setting, and the seeds that the recorded bank has of it.
SETTINGS = {
    "2d-relu": (Setting(), range(3)),
    "2d-tanh": (Setting(activation="tanh"), range(3)),
    "2d-adam": (Setting(**ADAM, epochs=60, last_epochs=2), range(2)),
    "faces-adam": (Setting("faces", **ADAM | {"n": 500, "batch_size": 50, "learning_rate": 2e-4, "activation": "silu", "width": 6, "held_out": 600,
                                              "latents": 400, "last_epochs": 3, "instances": 60}), range(2)),
    "mnist": (Setting("mnist", epochs=100, learning_rate=2e-3, width=8, latents=500, last_epochs=1, instances=60), range(1)),
}
