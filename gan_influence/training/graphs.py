"""Who speaks to whom: directed graphs of clients, each a pure function of the number of clients, the round and a seed.

A graph returns P, (clients, clients) float64, with P[j, i] the share of what client i holds that it sends to client j: one over the number of
those it speaks to in that round, itself always among them. So columns sum to 1. A graph of one's own is any such function; `mixing` makes P of links.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.sparse.csgraph import connected_components

from ..tools.streams import stream

Graph = Callable[[int, int, int], np.ndarray]
BLOCK = 256  #: rounds whose links are drawn at once
PATIENCE = 32  #: rounds per client within which everybody must be heard by everybody


def mixing(links: np.ndarray) -> np.ndarray:
    """P of links, (n, n) bool, links[j, i] where i speaks to j; everybody speaks to itself.

    >>> mixing(np.array([[0, 1], [0, 0]], dtype=bool))
    array([[1. , 0.5],
           [0. , 0.5]])
    """
    links = links | np.eye(len(links), dtype=bool)
    return links / links.sum(0)


def full(clients: int, t: int, seed: int) -> np.ndarray:
    """Everybody speaks to everybody: one round is the mean.

    >>> full(2, t=0, seed=0)
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    return _shifts(clients, tuple(range(clients)))


def ring(clients: int, t: int, seed: int) -> np.ndarray:
    """Each speaks to the next one."""
    return _shifts(clients, (1,))


def broadcaster(clients: int, t: int, seed: int) -> np.ndarray:
    """A ring whose first client speaks to all: it sends more than it hears, so that what is sent does not balance."""
    return _broadcaster(clients)


def exponential(clients: int, t: int, seed: int) -> np.ndarray:
    """In round t each speaks to the one 2^t places on, t modulo ⌈log₂ n⌉; for n a power of two, log₂ n rounds are the mean.

    >>> p, q = (exponential(4, t, seed=0) for t in (0, 1))
    >>> q @ p == full(4, 0, 0)
    array([[ True,  True,  True,  True],
           [ True,  True,  True,  True],
           [ True,  True,  True,  True],
           [ True,  True,  True,  True]])

    Source: Assran et al., ICML 2019, appendix A.
    """
    return _shifts(clients, (2 ** (t % max(1, (clients - 1).bit_length())),))


def random_directed(clients: int, t: int, seed: int) -> np.ndarray:
    """Every link is there or not, each round anew, with a probability of its own from U(.4, .8).

    Source: Terashita and Hara, arXiv 2210.02129.
    """
    return _directed(clients, seed, t // BLOCK)[t % BLOCK]


def random_pair(clients: int, t: int, seed: int) -> np.ndarray:
    """Two clients, drawn each round anew, speak to each other; the others are silent.

    Source: Boyd et al., Randomized Gossip Algorithms, 2006.
    """
    return _pairs(clients, seed, t // BLOCK)[t % BLOCK]


#: Every graph, by name.
GRAPHS = {one.__name__: one for one in (full, ring, broadcaster, exponential, random_directed, random_pair)}


def check_graph(graph: Graph, clients: int, seed: int, first: int = 0) -> None:
    """Refuse a graph whose columns do not sum to 1, or by which some client is never heard by some other.

    Raises:
        TypeError: for what is no function.
        ValueError: with the clients.
    """
    if not callable(graph):
        raise TypeError(f"a graph is a function of clients, round and seed, such as gi.graphs.ring, but got {graph!r}: choose among {', '.join(GRAPHS)}")
    heard, rounds = np.eye(clients, dtype=bool), PATIENCE * clients
    for t in range(first, first + rounds):
        p = np.asarray(graph(clients, t, seed))
        if p.shape != (clients, clients) or not (p >= 0).all() or not (p.diagonal() > 0).all() or not np.allclose(p.sum(0), 1, rtol=0, atol=1e-12):
            raise ValueError(f"gossip assumes that each of {clients} clients splits what it holds over itself and those it speaks to, but round {t} of this "
                             f"graph is no ({clients}, {clients}) matrix of shares whose columns sum to 1, diagonal positive: make it by gi.graphs.mixing")
        if not (heard | (p > 0) == heard).all():
            heard |= p > 0
            parts, which = connected_components(heard.T, directed=True, connection="strong")
            if parts == 1:
                return
    if clients > 1:
        reached = np.linalg.matrix_power(heard.astype(float), clients) > 0
        j, i = np.argwhere(~reached)[0]
        raise ValueError(f"gossip assumes that everybody is heard by everybody in the end, but within {rounds} rounds of this graph nothing from client {i} "
                         f"comes to client {j}: add links until it is strongly connected")


@lru_cache
def _shifts(clients: int, shifts: tuple[int, ...]) -> np.ndarray:
    own = np.eye(clients, dtype=bool)
    return mixing(np.any([np.roll(own, shift, axis=0) for shift in shifts], axis=0))


@lru_cache
def _broadcaster(clients: int) -> np.ndarray:
    links = np.roll(np.eye(clients, dtype=bool), 1, axis=0)
    links[:, 0] = True
    return mixing(links)


@lru_cache(8)
def _directed(clients: int, seed: int, block: int) -> np.ndarray:
    likely = stream("graph", seed, 0).uniform(0.4, 0.8, (clients, clients))
    drawn = stream("graph", seed, 1 + block).uniform(size=(BLOCK, clients, clients))
    return np.stack([mixing(one) for one in drawn < likely])


@lru_cache(8)
def _pairs(clients: int, seed: int, block: int) -> np.ndarray:
    random, links = stream("graph", seed, 1 + block), np.zeros((BLOCK, clients, clients), dtype=bool)
    for one in links:
        i, j = random.permutation(clients)[:2] if clients > 1 else (0, 0)
        one[i, j] = one[j, i] = True
    return np.stack([mixing(one) for one in links])
