"""What is read off a run: influence, retraining, cleansing, and how well the first predicts the second."""

from .agreement import Agreement, agreement
from .cleansing import Cleansing, cleanse, isolation_forest, random_scores
from .gossip import gossip_influence, over_clients, push_sum
from .influence import harmfulness, influence, parameter_influence
from .retraining import leave_one_out, retrain
from .rounds import Rounds, cleanse_in_rounds
from .sets import linear_datamodelling_score
from .smoothness import smoothness
from .verification import Verification, verify

__all__ = ["Agreement", "Cleansing", "Rounds", "Verification", "agreement", "cleanse", "cleanse_in_rounds", "gossip_influence", "harmfulness",
           "influence", "isolation_forest", "leave_one_out", "linear_datamodelling_score", "over_clients", "parameter_influence", "push_sum",
           "random_scores", "retrain", "smoothness", "verify"]
