"""Which training images hurt a GAN, and would it be better without them?"""

__version__ = "0.1.0"

from . import data, losses, metrics, models
from .agreement import Agreement, agreement
from .cleansing import Cleansing, cleanse, isolation_forest, random_scores
from .dynamics import Batch, Dynamics
from .gan import GAN
from .influence import harmfulness, influence, parameter_influence
from .optimizers import SGD
from .retraining import leave_one_out, retrain
from .state import State
from .trajectory import Trajectory, train, trajectory_bytes

__all__ = ["GAN", "SGD", "Agreement", "Batch", "Cleansing", "Dynamics", "State", "Trajectory", "agreement", "cleanse", "data", "harmfulness",
           "influence", "isolation_forest", "leave_one_out", "losses", "metrics", "models", "parameter_influence", "random_scores", "retrain", "train",
           "trajectory_bytes"]
