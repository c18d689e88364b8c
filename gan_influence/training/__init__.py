"""How a GAN is trained, as a value: one pure step, and the run that it makes."""

from .dynamics import Dynamics
from .gossip import client_states, record_by_gossip, train_by_gossip
from .keeping import trajectory_bytes
from .known import NotUnderstood
from .making import record, train
from .optimizers import SGD, Adam, AdamW, RMSprop
from .plan import Batch
from .recorder import Recorder
from .schedule import RecordedSchedule, Schedule
from .trajectory import Trajectory

__all__ = ["SGD", "Adam", "AdamW", "Batch", "Dynamics", "NotUnderstood", "RMSprop",
           "RecordedSchedule", "Recorder", "Schedule", "Trajectory", "client_states", "record", "record_by_gossip", "train", "train_by_gossip",
           "trajectory_bytes"]
