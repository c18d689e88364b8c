"""Whether what `verify` says of a run comes true: its verdict against what cleansing then brings on test data."""

import dataclasses
import time
from collections.abc import Iterable, Iterator

from ..readings.cleansing import cleanse
from ..readings.influence import harmfulness, influence
from ..readings.judging import direction
from ..readings.sets import linear_datamodelling_score
from ..readings.smoothness import smoothness
from ..readings.verification import verify
from .protocols import Removal


def verdicts(config: Removal, seeds: Iterable[int], windows: Iterable[int], probes: int = 40) -> Iterator[dict]:
    """For every seed and window, what `verify` says on the validation metric, and what cleansing of the fraction picked on it does on test.

    Yields:
        Rows: activation, seed, last_epochs, the fields of a `Verification`, n_removed (0: no fraction helped), valid_gain and test_gain in
        the metric's units, signed so that positive is better; and seconds of the verification.
    """
    for seed in seeds:
        setup = config.prepare(seed)
        (valid,), (test,) = setup.valid.values(), setup.test.values()
        for k in windows:
            scores = influence(setup.run, valid, last_epochs=k)
            began = time.perf_counter()
            found = dataclasses.asdict(verify(setup.run, valid, scores, last_epochs=k, probes=probes))
            seconds = time.perf_counter() - began
            intervals, _ = found.pop("intervals"), found.pop("rows")
            found |= {f"{name}_{end}": value for name, ends in intervals.items() for end, value in zip(("low", "high"), ends)}
            (picked,) = cleanse(setup.run, {"influence": harmfulness(scores, valid)}, config.fractions, valid, test, last_epochs=k).picked
            gains = {f"{part}_gain": direction(valid) * (picked[f"{part}_after"] - picked[f"{part}_before"]) for part in ("valid", "test")}
            yield {"activation": config.activation, "seed": seed, "last_epochs": k, **found, "n_removed": picked["n_removed"], **gains,
                   "seconds": seconds}


def set_scores(config: Removal, seeds: Iterable[int], windows: Iterable[int], fraction: float = 0.01, subsets: int = 32) -> Iterator[dict]:
    """For every seed and window, the linear datamodelling score on the validation metric, and the run's smoothness."""
    for seed in seeds:
        setup = config.prepare(seed)
        (valid,) = setup.valid.values()
        for k in windows:
            found = linear_datamodelling_score(setup.run, valid, influence(setup.run, valid, last_epochs=k), k, fraction, subsets)
            yield {"activation": config.activation, "seed": seed, "last_epochs": k, "fraction": fraction, "spearman": found.spearman,
                   "low": found.low, "high": found.high, "smoothness": smoothness(setup.run, k)}
