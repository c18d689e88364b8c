"""The clients of gossip as programs of their own, on the workers of a Dask cluster: what one tells another goes from worker to worker."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
import torch
from distributed import Actor, Client
from torch import Tensor

PATIENCE = 600.0  #: seconds that a client waits for a message


class Participant:
    """One client on its worker: a Dask actor that runs the client's program and takes in the messages that the others' send it meanwhile."""

    def __init__(self, number: int):
        self.number, self.round, self.letters, self.arrived, self.heard = number, 0, {}, threading.Condition(), 0

    async def receive(self, round: int, sender: int, values: np.ndarray) -> None:
        """A message, sent by another participant's worker."""
        with self.arrived:
            self.letters[round, sender] = values
            self.heard += values.nbytes
            self.arrived.notify_all()

    async def play(self, program: Callable, arguments: tuple, everybody: Sequence[Actor]) -> tuple:
        """What the program returns of (exchange, *arguments), and the bytes of all messages that came in."""
        self.everybody = everybody
        return await asyncio.to_thread(program, self.exchange, *arguments), self.heard

    def exchange(self, p: np.ndarray, values: Tensor) -> Tensor:
        """One round: send everybody their share of what is held here, (1, numbers), and return the sum of what is kept and what comes in."""
        i, self.round = self.number, self.round + 1
        own = values[0].detach().cpu().numpy()
        sent = [self.everybody[j].receive(self.round, i, p[j, i] * own) for j in np.flatnonzero(p[:, i]) if j != i]
        senders = {int(j) for j in np.flatnonzero(p[i]) if j != i}
        with self.arrived:
            if not self.arrived.wait_for(lambda: all((self.round, j) in self.letters for j in senders), PATIENCE):
                missing = min(j for j in senders if (self.round, j) not in self.letters)
                raise TimeoutError(f"gossip assumes that everybody speaks in every round, but client {i} waited {PATIENCE:.0f} s of round {self.round} for "
                                   f"client {missing}: see whether that one failed")
            held = sum((self.letters.pop((self.round, j)) for j in sorted(senders)), p[i, i] * own)
        for message in sent:
            message.result(PATIENCE)
        return torch.from_numpy(held).to(values)[None]


def play(client: Client, program: Callable, arguments: Sequence[tuple]) -> list[tuple]:
    """Run a program at every client, each with arguments of its own, spread over a Dask cluster's workers.

    Args:
        client: of the cluster. Several clients share a worker where there are fewer workers.
        program: called as program(exchange, *arguments[i]) for client i, with an `exchange` as `gi.train_by_gossip` takes it. All programs exchange
            equally often.
        arguments: of every client; they alone travel to its worker.

    Returns:
        (what the program returned, bytes of the messages that its client received), one for each.

    Raises:
        ValueError: where no worker is connected.
        Exception: what the first program to fail raised; a TimeoutError where a client waited in vain for another.
    """
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise ValueError(f"the clients of gossip live on workers, but none is connected to {client.scheduler.address}: start some with `dask worker`")
    with client.as_current():  # actors ask for it
        actors = [client.submit(Participant, i, actor=True, pure=False, workers=[worker]) for i, worker in zip(range(len(arguments)), cycle(workers))]
        everybody = client.gather(actors)
        playing = [participant.play(program, own, everybody) for participant, own in zip(everybody, arguments)]

        async def first_failure() -> list[tuple]:  # is told at once, while the others still wait for the one that failed
            return await asyncio.gather(*playing)

        return client.sync(first_failure)
