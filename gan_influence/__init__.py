"""Which training images hurt a GAN, and would it be better without them?"""

from .tools.lazily import __dir__, __getattr__
from .tools.versions import __version__

#: Every public name, and the room it lives in.
HOMES = {
    "": ("data", "metrics", "models"),
    ".game": ("GAN", "GradientPenalty", "R1", "State", "losses"),
    ".training": ("SGD", "Adam", "AdamW", "Batch", "Dynamics", "NotUnderstood", "RMSprop", "Recorder", "Trajectory", "client_states", "graphs",
                  "record", "record_by_gossip", "train", "train_by_gossip", "trajectory_bytes"),
    ".readings": ("Agreement", "Cleansing", "Rounds", "Verification", "agreement", "cleanse", "cleanse_in_rounds", "gossip_influence", "harmfulness",
                  "influence", "isolation_forest", "leave_one_out", "linear_datamodelling_score", "over_clients", "parameter_influence", "push_sum",
                  "random_scores", "retrain", "smoothness", "verify"),
    ".studies": ("browsers", "experiments", "plots", "schematic", "widgets"),
}
