"""The tables of the results page, made from notebooks/recorded and the published numbers whenever the site is built."""

import json
import re
from collections.abc import Iterator
from functools import partial

import pandas as pd

from gan_influence.studies.protocols import EXPERIMENTS
from gan_influence.studies.published import PUBLISHED_ACCURACY, PUBLISHED_REMOVAL
from gan_influence.studies.recording import RECORDED, recorded
from gan_influence.tools.streams import STREAMS

#: How the recordings that `gan-influence record` does not make are made again.
MADE_BY = {"board": "`gan-influence board --record`", "adam_faces": "notebook 08, its parameter `seeds_faces`",
           "removal_mnist_again": "`gan-influence record removal_mnist --seeds 0`",
           **{name: f"`studies.trust.{function}`" for name, function in
              {"kinks_2d": "kink_shares", "lds_2d": "set_scores", "noise_mnist": "rounding", "verdicts_2d": "verdicts"}.items()}}


def markdown(rows: list[dict]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([row.get(name, "") for name in head] for row in rows)]
    return "\n".join("| " + " | ".join(str(entry).replace("|", "\\|") for entry in line) + " |" for line in lines)


def spread(values: pd.Series, digits: int, sign: str = "") -> str:
    """Mean ± standard deviation over seeds; one seed alone has none."""
    text = f"{values.mean():{sign}.{digits}f}" + (f"\u00a0±\u00a0{values.std():.{digits}f}" if len(values) > 1 else "")
    return text.replace("-", "−")


def accuracy(name: str) -> str:
    """Experiment 1: agreement with leave-one-out, by metric and window."""
    table, header = recorded(name)
    texts = []
    for metric, of_metric in table.groupby("metric"):
        rows, there = [], PUBLISHED_ACCURACY[metric]
        for k, part in of_metric.groupby("last_epochs"):
            row = {"window k": k}
            for score, title in (("kendall_tau", "Kendall's τ"), ("jaccard", "Jaccard")):
                row |= {f"{title}, ours": spread(part[score], 2), "published" + " " * len(row): f"{dict(zip(there['k'], there[score]))[k]:.2f}"}
            rows.append(row)
        texts.append(f"{metric[0].upper()}{metric[1:]}, `{name}`: seeds of ours {of_metric.seed.nunique()}, instances left out in each "
                     f"{header['config']['instances']}.\n\n{markdown(rows)}")
    return "\n\n".join(texts)


def removal(name: str, metric: str, digits: int, published: bool = True) -> str:
    """Experiment 2: change of a metric on test data by how many instances were removed; in brackets the published one."""
    table, _ = recorded(name)
    table = table[table.metric == metric].assign(change=lambda rows: rows.test_after - rows.test_before)
    there, rows = PUBLISHED_REMOVAL[metric] if published else {"n_removed": ()}, []
    for n, part in table.groupby("n_removed"):
        rows.append({"removed": f"{n:,}".replace(",", "\u202f")})
        for method, values in part.groupby("method"):
            known = f"\u00a0({dict(zip(there['n_removed'], there[method]))[n]:+.{digits}f})".replace("-", "−") if method in there else ""
            rows[-1][method] = spread(values.change, digits, "+") + known
    return f"`{name}`: seeds of ours {table.seed.nunique()}.\n\n{markdown(rows)}"


def recordings() -> str:
    """Every recording: where it is shown, its seeds, the time it took, and how to make it again."""
    shown = {path.stem: path.read_text(encoding="utf-8") for path in sorted(RECORDED.parent.glob("*.ipynb"))}
    rows = []
    for path in sorted(RECORDED.glob("*.json")):
        name, header = path.stem, json.loads(path.read_text(encoding="utf-8"))
        seeds = {seed for named in leaves(header, "seeds") for seed in seeds_of(named)}
        seconds = [one for key in ("pieces", "wall_seconds") for value in leaves(header, key) for one in numbers(value)]
        rows.append({
            "recording": f"`{name}`",
            "shown in": ", ".join(f"[{stem[:2]}](notebooks/{stem}.ipynb)" for stem, text in shown.items() if re.search(rf"\b{name}\b", text)) or "—",
            "seeds": len(seeds),
            "hours": f"{sum(seconds) / 3600:.1f}" if seconds else "not kept",
            "random streams": "older" if header.get("streams", 1 if name in EXPERIMENTS else STREAMS) < STREAMS else "present",
            "made again by": f"`gan-influence record {name}`" if name in EXPERIMENTS else MADE_BY.get(name, f"what `recorded/{name}.json` names"),
        })
    return markdown(rows)


def leaves(header, key: str) -> Iterator:
    """Every value under a key, at any depth."""
    for name, value in header.items() if isinstance(header, dict) else ():
        yield from [value] if name == key else leaves(value, key)


def seeds_of(named: list | dict) -> list[int]:
    """The seeds of a list, of lists by setting, or of a dict by seed."""
    return named if isinstance(named, list) else [seed for name, one in named.items() for seed in (one if isinstance(one, list) else [int(name)])]


def numbers(value) -> list[float]:
    return [number for one in value.values() for number in numbers(one)] if isinstance(value, dict) else [value]


#: What stands in results.md as <<name>>.
TABLES = {
    "accuracy 2d": partial(accuracy, "accuracy_2d"),
    "accuracy mnist": partial(accuracy, "accuracy_mnist"),
    "accuracy mnist small": partial(accuracy, "accuracy_mnist_small"),
    "removal 2d": partial(removal, "removal_2d", "average log-likelihood", 4),
    "removal mnist fid": partial(removal, "removal_mnist", "Fréchet distance", 2),
    "removal mnist is": partial(removal, "removal_mnist", "Inception score", 2),
    "removal mnist small": partial(removal, "removal_mnist_small", "Fréchet distance", 2, published=False),
    "recordings": recordings,
}
