"""How a GAN is trained, as a value: one pure step, and the run that it makes."""

from .dynamics import Batch, Dynamics
from .optimizers import SGD
from .schedule import RecordedSchedule, Schedule
from .trajectory import Trajectory, train, trajectory_bytes

__all__ = ["SGD", "Batch", "Dynamics", "RecordedSchedule", "Schedule", "Trajectory", "train", "trajectory_bytes"]
