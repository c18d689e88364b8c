"""How a GAN is trained, as a value: one pure step, and the run that it makes."""

from .dynamics import Batch, Dynamics
from .keeping import trajectory_bytes
from .optimizers import SGD
from .schedule import RecordedSchedule, Schedule
from .trajectory import Trajectory, train

__all__ = ["SGD", "Batch", "Dynamics", "RecordedSchedule", "Schedule", "Trajectory", "train", "trajectory_bytes"]
