"""The command line's clients as processes: `gan-influence gossip`."""

import sys

import gan_influence as gi  # whose parts are imported when the command is at work: that takes longer than a help text may

from .batch import _positive

GRAPHS = "full", "ring", "broadcaster", "exponential", "random_directed", "random_pair"


def add_gossip(commands) -> None:
    command = commands.add_parser("gossip", help="train and score a small GAN among clients that are processes of their own", description="""\
Split 2D-normal data among clients by their first coordinate, so that no two see the same; train a GAN by gossip and score every
instance at its client. Each client is a program on a Dask worker, and parameters and cotangents go from worker to worker. The
same is then simulated in this process, and the two are compared. In --out:
  table.csv       client, instance, score, that of the simulation
  results.json    the largest differences; messages and bytes by client""", epilog="""\
examples:
  gan-influence gossip --clients 8                              eight processes of this machine
  gan-influence gossip --clients 8 --graph ring --steps 100 --rounds 20
several machines, one `dask scheduler` and on each machine `dask worker tcp://ADDRESS:8786 --nthreads 1`; then
  gan-influence gossip --clients 8 --scheduler tcp://ADDRESS:8786
A program of your own among clients, with their own data: gan_influence.batch.gossip.play.""")
    command.add_argument("--clients", type=_positive, default=8, metavar="N", help="default: %(default)s")
    command.add_argument("--graph", choices=GRAPHS, default="broadcaster", help="who speaks to whom (default: %(default)s)")
    command.add_argument("--steps", type=_positive, default=30, metavar="T", help="of training (default: %(default)s)")
    command.add_argument("--rounds", type=_positive, default=5, metavar="S", help="of push-sum for every step that is traced back (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    command.add_argument("--jobs", type=_positive, metavar="N", help="processes that the clients live in (default: one each)")
    command.add_argument("--scheduler", metavar="ADDRESS", help="let them live on the workers of this Dask scheduler instead")
    command.add_argument("--out", default="runs/gossip", metavar="DIR", help="where the scores go (default: %(default)s)")
    command.set_defaults(call=_gossip)


def _gossip(options) -> int:
    import torch

    from ..batch import executors, gossip
    from ..tools.results import save_results
    torch.set_num_threads(1)
    n, each = options.clients, 25
    data, gan = gi.data.normal_2d(train=each * n, valid=100, seed=options.seed), gi.models.fcgan(options.seed, activation=torch.nn.Tanh)
    shards = list(data.train[data.train[:, 0].argsort()].split(each))
    metric = gi.metrics.AverageLogLikelihood(data.valid, gan.sample_latents(100, seed=1))
    rules = gan, metric, options.graph, options.steps, options.rounds, options.seed
    with executors.remote(options.scheduler) if options.scheduler else executors.local(options.jobs or n) as (client, _):
        told = gossip.play(client, one_client, [([shard if i == k else len(shard) for k, shard in enumerate(shards)], *rules) for i in range(n)])
    simulated = one_client(None, shards, *rules)
    rows, results, gaps = [], {}, {"parameters": 0.0, "scores": 0.0}
    for i, ((((parameters, scores, seen),), heard), (same, expected, _)) in enumerate(zip(told, simulated)):
        gaps["parameters"] = max(gaps["parameters"], float((parameters - same).abs().max() / same.abs().max()))
        gaps["scores"] = max(gaps["scores"], float((scores - expected).abs().max() / expected.abs().max()))
        rows += [{"client": i, "instance": j, "score": a.item(), "simulated": b.item()} for j, (a, b) in enumerate(zip(scores, expected))]
        results[f"client {i}"] = {"messages": seen["messages"], "bytes_sent": seen["bytes_sent"], "bytes_received": heard, "worst": int(scores.argmax())}
        print(f"client {i}: {len(scores)} scores, for {seen['messages']} messages of {seen['bytes_sent'] / 1e6:.2f} MB; {heard / 1e6:.2f} MB came in "
              f"with those of training; most harmful is its instance {int(scores.argmax())}")
    save_results(options.out, {"largest relative difference from the simulation": gaps, **results}, rows)
    print(f"largest difference from the simulation, relative: parameters {gaps['parameters']:.0e}, scores {gaps['scores']:.0e}; scores are in {options.out}")
    if max(gaps.values()) > 1e-9:
        print("the clients and their simulation disagree by more than rounding", file=sys.stderr)
        return 1
    return 0


def one_client(exchange, shards: list, gan, metric, graph: str, steps: int, rounds: int, seed: int) -> list[tuple]:
    """What every client runs; without an exchange, all of them: (parameters, scores, diagnostics) by client."""
    import torch
    torch.set_num_threads(1)
    run = gi.train_by_gossip(gan, shards, getattr(gi.graphs, graph), steps, 10, gi.SGD(0.1), "simultaneous", seed, exchange=exchange)
    scores = gi.gossip_influence(run, metric, rounds)
    parameters = [torch.cat([p.flatten() for p in state.tensors()]) for state in gi.client_states(run.final)]
    return [(p, torch.tensor(own.tolist(), dtype=torch.float64), own.diagnostics._asdict()) for p, own in zip(parameters, scores)]
