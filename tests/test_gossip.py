"""Gossip: training and influence without a centre, against closed forms, dense matrices and differentiation through every client's whole run."""

import csv
import json
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call
from torch.nn.functional import softplus

import gan_influence as gi
from conftest import optional, tiny_data, tiny_gan, tiny_metric
from gan_influence.readings import gossip as READING
from gan_influence.studies.protocols import Decentralised
from gan_influence.training.graphs import GRAPHS, check_graph, mixing

AT_REST = READING._AtRest
CLIENTS, EACH = 8, 25


class ToTarget:
    """V(a, b) = (a − a₀)² + (b − b₀)² of an LQGAN's generator."""

    name, higher_is_better = "squared distance to a target", False

    def __init__(self, a=0.5, b=0.7):
        self.a, self.b = a, b

    def __call__(self, gan, state):
        return ((state.generator["a"] - self.a) ** 2 + (state.generator["b"] - self.b) ** 2).sum()


def standard(values):
    return (values - values.mean()) / values.std(unbiased=False)


def settled(sizes=(EACH,) * CLIENTS, rate=0.05):
    """Clients of different means that rest at the exact optimum of the LQGAN, all latents of mean 0 and variance 1; and their pooled data."""
    random, dynamics = np.random.default_rng(0), gi.Dynamics(gi.models.lqgan(), gi.SGD(rate), "simultaneous")
    shards = [torch.from_numpy(mean + random.standard_normal((n, 1))) for mean, n in zip(np.linspace(-1.5, 1.5, len(sizes)), sizes)]
    latents, x = [standard(torch.from_numpy(random.standard_normal((n, 1)))) for n in sizes], torch.cat(shards)
    optimum = gi.State({"a": x.std(unbiased=False)[None], "b": x.mean()[None]}, {"w": torch.zeros(1, 2, dtype=torch.float64)})

    def step(state, batch, weights):
        return dynamics.step(state, gi.Batch(*batch, None, (rate, rate)), weights)

    run = gi.record_by_gossip(step, optimum, [[(range(n), z) for n, z in zip(sizes, latents)]], shards, GRAPHS["full"])
    return run, x


def closed_form(x, metrics):
    a, b = float(x.std(unbiased=False)), float(x.mean())
    return sum(gi.models.lqgan_influence(x, 2 * (a - one.a), 2 * (b - one.b)) for one in metrics) / len(metrics)


def relative(scores, truth):
    scores = torch.cat(scores) if isinstance(scores, list) else scores
    return float((scores - truth).norm() / truth.norm())


def cosine(scores, truth):
    return float(torch.cosine_similarity(torch.cat(scores), truth, dim=0))


def kendall(scores, truth):
    return stats.kendalltau(torch.cat(scores), truth).statistic


def mlp_run(graph=GRAPHS["ring"], steps=6, optimizer=gi.SGD(0.3), order="alternating", sizes=(6, 9, 6), gan=None, **options):
    x = tiny_data(sum(sizes))
    shards = x[x[:, 0].argsort()].split(list(sizes))
    return gi.train_by_gossip(gan or tiny_gan(), shards, graph, steps, options.pop("batch_size", 3), optimizer, order, seed=1, **options)


def small_gan(dtype=torch.float64):
    """A GAN of 19 parameters that decay holds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return gi.GAN(nn.Linear(2, 2).to(dtype), nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype), latent_dim=2)


def second_modulus(p):
    return np.sort(np.abs(np.linalg.eigvals(p)))[-2]


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_push_sum_conserves_and_comes_to_the_mean(graph):
    held = values = torch.from_numpy(np.random.default_rng(0).standard_normal((CLIENTS, 3)))
    weight = torch.ones(CLIENTS, dtype=torch.float64)
    for t in range(300):
        p = torch.from_numpy(graph(CLIENTS, t, 0))
        held, weight = p @ held, p @ weight
        assert abs(float(weight.sum()) - CLIENTS) < 1e-12 and (held.sum(0) - values.sum(0)).abs().max() < 1e-12
    assert torch.allclose(gi.push_sum(values, graph, 300), held / weight[:, None], rtol=0, atol=1e-12)
    assert torch.allclose(gi.push_sum(values, graph, 300), values.mean(0).expand(CLIENTS, -1), rtol=0, atol=1e-9)
    assert graph is not GRAPHS["broadcaster"] or (held - values.mean(0)).abs().max() > 0.05  # the division is what balances it


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("clients", [1, 2, 5, 8])
def test_graphs_are_pure_functions_that_reach_everybody(graph, clients):
    check_graph(graph, clients, seed=3)
    drawn = [graph(clients, t, 3).copy() for t in range(40)]
    assert all(np.array_equal(p, graph(clients, t, 3)) for t, p in enumerate(drawn))
    assert graph not in (GRAPHS["random_directed"], GRAPHS["random_pair"]) or clients < 5 or not np.array_equal(drawn[0], graph(clients, 0, 4))


def test_what_is_no_graph_gets_a_sentence():
    two_islands = mixing(np.kron(np.eye(2), np.ones((2, 2))).astype(bool))
    with pytest.raises(ValueError, match="within 128 rounds of this graph nothing from client 2 comes to client 0: add links"):
        mlp_run(lambda n, t, seed: two_islands, sizes=(3, 3, 3, 3))
    with pytest.raises(ValueError, match="nothing from client 1 comes to client 0"):
        mlp_run(lambda n, t, seed: mixing(np.tril(np.ones((n, n), dtype=bool))))
    with pytest.raises(ValueError, match="round 0 of this graph is no .3, 3. matrix of shares whose columns sum to 1"):
        mlp_run(lambda n, t, seed: mixing(np.roll(np.eye(n), 1, 0).astype(bool)).T @ np.diag([1, 2, 1]))
    with pytest.raises(TypeError, match="a graph is a function of clients, round and seed, such as gi.graphs.ring, but got 'ring': choose among full, ring"):
        mlp_run("ring")
    alternating = [mixing(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)), mixing(np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=bool))]
    assert mlp_run(lambda n, t, seed: alternating[t % 2]).steps == 6  # neither round connects everybody, both together do


@pytest.mark.parametrize("name", GRAPHS)
def test_decentralised_aid_has_the_central_closed_form(name):
    run, x = settled()
    central, errors = closed_form(x, [ToTarget()]), {}
    for rounds in (1, 5, 20, 50) if name != "full" else (1, 5):
        scores = gi.gossip_influence(run, ToTarget(), rounds, "aid", graph=GRAPHS[name], damping=1.0, iterations=1_000 if name != "full" else 2_000)
        errors[rounds] = relative(scores, central)
    assert kendall(scores, central) >= 0.99 and cosine(scores, central) >= 0.999
    if name == "full":
        assert max(errors.values()) <= 1e-12
        return
    assert all(after < before or after < 1e-9 for before, after in zip(list(errors.values()), list(errors.values())[1:])), errors
    assert errors[1] > 1e-3  # else it is no test of communication
    if name in ("ring", "broadcaster"):
        assert (errors[50] / errors[20]) ** (1 / 30) == pytest.approx(second_modulus(GRAPHS[name](CLIENTS, 0, 0)), rel=0.05)


def test_without_the_push_sum_weights_an_unbalanced_graph_stays_wrong(monkeypatch):
    run, x = settled()
    errors = {}
    for divided in (True, False):
        if not divided:
            monkeypatch.setattr(READING, "_divided", lambda held: held[:, :-1])
        errors[divided] = [relative(gi.gossip_influence(run, ToTarget(), rounds, "aid", graph=GRAPHS["broadcaster"], damping=1.0), closed_form(x, [ToTarget()]))
                           for rounds in (20, 50)]
    assert max(errors[True]) < 2e-3 and min(errors[False]) > 0.2


def test_metrics_of_the_clients_own_need_communication():
    run, x = settled()
    metrics = [ToTarget(*target) for target in np.random.default_rng(2).standard_normal((CLIENTS, 2))]
    central = closed_form(x, metrics)
    alone = gi.gossip_influence(run, metrics, 0, "aid", damping=1.0)
    assert cosine(alone, central) < 0.9 and kendall(alone, central) < 0.8 and alone[0].diagnostics.bytes_sent == 0
    assert relative(gi.gossip_influence(run, metrics, 50, "aid", graph=GRAPHS["broadcaster"], damping=1.0), central) < 1e-5


def test_clients_of_unequal_size_are_weighed_by_it():
    run, x = settled((5, 40, 15))
    assert relative(gi.gossip_influence(run, ToTarget(), 1, "aid", damping=1.0, iterations=2_000), closed_form(x, [ToTarget()])) < 1e-12
    alone = gi.train_by_gossip(gi.models.lqgan(), [x[:5], x[5:45], x[45:]], GRAPHS["full"], 1, None, gi.SGD(1.0), "simultaneous")
    share = [client.share for client in alone.dynamics.own.each]
    assert share == [0.25, 2.0, 0.75]


def by_hand(run, shards, rate, graph, seed, metric):
    """The whole decentralised run in plain torch, and what autograd says of the clients' mean metric by every instance's weight."""
    gan, n = run.dynamics.game, len(shards)
    weights = [torch.ones(len(shard), dtype=torch.float64, requires_grad=True) for shard in shards]
    g, d = gan.networks
    held = [tuple({k: p.detach().clone().requires_grad_() for k, p in network.named_parameters()} for network in (g, d)) for _ in shards]
    omega, share = torch.ones(n, dtype=torch.float64), [len(shard) * n / sum(map(len, shards)) for shard in shards]
    for t in range(run.steps):
        moved = []
        for i, shard in enumerate(shards):
            own_g, own_d = ({k: p / omega[i] for k, p in player.items()} for player in held[i])
            batch = run.batch(t)[1][i]
            start = sum(len(one) for one in shards[:i])
            rows = run.schedule.indices(t)[sum(run.schedule.counts[t][:i]):sum(run.schedule.counts[t][:i + 1])] - start
            fake = functional_call(g, own_g, batch.z)
            loss = (weights[i][rows] * softplus(-functional_call(d, own_d, shard[rows])[:, 0])).mean() + softplus(functional_call(d, own_d, fake)[:, 0]).mean()
            by_d = torch.autograd.grad(loss, list(own_d.values()), create_graph=True)
            new_d = {k: p - rate * slope for (k, p), slope in zip(own_d.items(), by_d)}
            here = {k: p.view_as(p) for k, p in own_g.items()}  # the discriminator's new parameters depend on own_g, too
            by_g = torch.autograd.grad(softplus(-functional_call(d, new_d, functional_call(g, here, batch.generator_z))[:, 0]).mean(), list(here.values()),
                                       create_graph=True)
            moved.append(({k: held[i][0][k] - share[i] * rate * slope for k, slope in zip(own_g, by_g)},
                          {k: held[i][1][k] - share[i] * rate * slope for k, slope in zip(own_d, by_d)}))
        p = torch.from_numpy(graph(n, t, seed))
        held = [tuple({k: sum(p[j, i] * moved[i][player][k] for i in range(n)) for k in moved[0][player]} for player in (0, 1)) for j in range(n)]
        omega = p @ omega
    value = sum(metric(gan, gi.State({k: q / omega[i] for k, q in held[i][0].items()}, {})) for i in range(n)) / n
    return value.detach(), -torch.cat(torch.autograd.grad(value, weights))


@pytest.mark.parametrize("graph", [GRAPHS[name] for name in ("full", "broadcaster", "random_pair")], ids=["full", "broadcaster", "random_pair"])
def test_a_run_of_an_mlp_is_differentiated_as_by_hand_through_all_clients(graph):
    run = mlp_run(graph)
    metric = tiny_metric(run.dynamics.game)
    value, expected = by_hand(run, list(run.x.split([6, 9, 6])), 0.3, graph, 1, metric)
    both = gi.over_clients(run, metric)
    assert both(None, run.final).item() == pytest.approx(value.item(), rel=1e-12)
    assert relative(gi.influence(run, both), expected) <= 1e-10
    if graph is GRAPHS["full"]:
        assert relative(gi.gossip_influence(run, metric, 1), expected) <= 1e-10
    else:
        assert relative(gi.gossip_influence(run, metric, 60), expected) > 1e-4  # another estimate: links are not reversed


@pytest.mark.parametrize("options", [{"optimizer": gi.Adam(0.01)}, {"optimizer": gi.SGD(0.1, momentum=0.5), "order": "simultaneous"}, {"batch_size": None}],
                         ids=str)
def test_among_all_clients_one_round_makes_decentralised_itd_exact(options):
    run = mlp_run(GRAPHS["full"], 8, **options)
    metric = tiny_metric(run.dynamics.game)
    for last in (3, None):
        exact = gi.influence(run, gi.over_clients(run, metric), last_steps=last)
        assert relative(gi.gossip_influence(run, metric, 1, last_steps=last), exact) < 1e-12


def test_decentralised_itd_comes_near_the_truth_as_clients_agree():
    gaps = {}
    for rate in (0.2, 0.02):
        run = mlp_run(GRAPHS["broadcaster"], 30, gi.SGD(rate), sizes=(6,) * 4)
        metric = tiny_metric(run.dynamics.game)
        scores = gi.gossip_influence(run, metric, 30)
        truth = gi.influence(run, gi.over_clients(run, metric))
        gaps[rate] = 1 - cosine(scores, truth), max(one.diagnostics.disagreement for one in scores)
    assert gaps[0.02][0] < 0.01 and gaps[0.02] < gaps[0.2] and gaps[0.02][1] < gaps[0.2][1]


def test_every_client_starts_from_its_metrics_gradient_at_its_own_parameters():
    run = mlp_run(GRAPHS["broadcaster"])
    metric, weight = tiny_metric(run.dynamics.game), run.final.generator_memory[READING.WEIGHT]
    found = READING._at_own_parameters(READING.metric_gradient(run, gi.over_clients(run, metric)), run.final)
    assert abs(weight - 1).max() > 0.1
    for i, own in enumerate(gi.client_states(run.final)):
        own = own.map(torch.Tensor.requires_grad_)
        for name, slope in zip(own.generator, torch.autograd.grad(metric(run.dynamics.game, own), list(own.generator.values()))):
            assert torch.allclose(found.generator[name][i], slope / 3, rtol=1e-10, atol=0)


def test_influence_predicts_the_decentralised_runs_own_leave_one_out():
    run = mlp_run(GRAPHS["broadcaster"], 12, gi.SGD(0.05), sizes=(8, 8, 8), batch_size=4)
    metric = gi.over_clients(run, tiny_metric(run.dynamics.game))
    some = list(range(0, 24, 2))
    predicted, truth = gi.influence(run, metric)[some], gi.leave_one_out(run, metric, some)
    assert relative(predicted, truth) < 0.05 and abs(truth).min() > 0
    assert torch.equal(gi.retrain(run, []).generator["0.weight"], run.final.generator["0.weight"])


@pytest.mark.filterwarnings("ignore:decentralised AID")
@pytest.mark.parametrize("optimizer", [gi.SGD(0.2, weight_decay=0.5), gi.SGD(0.1, momentum=0.5, weight_decay=0.5)], ids=repr)
def test_decentralised_aid_of_an_mlp_is_the_dense_solution_of_the_whole_system(optimizer, monkeypatch):
    run = mlp_run(GRAPHS["full"], 60, optimizer, batch_size=None, sizes=(4, 8, 4), gan=small_gan())
    metric = tiny_metric(run.dynamics.game)
    like = {name: p for name, p in run.final.named().items() if READING.WEIGHT not in name}

    def state(flat):
        parts = iter(part.view_as(p) for part, p in zip(flat.split([p.numel() for p in like.values()]), like.values()))
        return run.final.rebuild(next(parts) if name in like else p for name, p in run.final.named().items())

    def step(flat, weights):
        after = run.dynamics.step(state(flat), run.batch(59), weights).named()
        return torch.cat([after[name].flatten() for name in like])

    here = torch.cat([p.flatten() for p in like.values()])
    by_state, by_weight = torch.autograd.functional.jacobian(step, (here, run.weights(59)))
    slope, = torch.autograd.functional.jacobian(lambda flat: gi.over_clients(run, metric)(None, state(flat)), (here,))
    dense = torch.zeros(16, dtype=torch.float64)
    dense[run.schedule.indices(59)] = -by_weight.T @ torch.linalg.solve(torch.eye(len(here)) - by_state.T, slope)
    scores = gi.gossip_influence(run, metric, 1, "aid", iterations=800)
    assert relative(scores, dense) < 1e-6 and scores[0].diagnostics.residual < 1e-6
    few = [gi.gossip_influence(run, metric, 1, "aid", iterations=30)]
    monkeypatch.setattr(READING, "_AtRest", lambda *arguments: AT_REST(*arguments[:3], 10_000))  # thirty pull-backs, or one matrix: the same
    few.append(gi.gossip_influence(run, metric, 1, "aid", iterations=30))
    assert relative(few[0], dense) > 1e-5 and relative(few[0], torch.cat(few[1])) < 1e-12


def test_instance_weights_of_a_classifier_have_their_dense_hyper_gradient():
    """Logistic regression on clients of different classes' shares: every instance's weight is a hyper-parameter of its client."""
    random, decay, rate = np.random.default_rng(1), 0.1, 0.5
    shards = []
    for shift in (-1.0, 0.0, 1.5):
        x = random.standard_normal((20, 3)) + shift * np.array([1, 0, 0.5])
        shards.append(torch.from_numpy(np.hstack([x, (x @ [1, -1, 0.5] + 0.5 * random.standard_normal(20) > 0)[:, None]])))
    held_out = torch.cat(shards)[::3] + 0.1

    def losses(theta, rows):
        return softplus(-(2 * rows[:, 3] - 1) * (rows[:, :3] @ theta))

    def step(state, batch, weights):
        theta = state.generator["theta"].view_as(state.generator["theta"])
        theta = theta if theta.requires_grad else theta.requires_grad_()
        with torch.enable_grad():
            loss = (weights * losses(theta, batch[0])).mean() + decay / 2 * theta @ theta
            slope, = torch.autograd.grad(loss, theta, create_graph=True)
        return state._replace(generator={"theta": state.generator["theta"] - rate * slope})

    def metric(_, state):
        return losses(state.generator["theta"], held_out).mean()

    everything = [[(range(20), None)] * 3] * 40
    run = gi.record_by_gossip(step, {"theta": torch.zeros(3, dtype=torch.float64)}, everything, shards, GRAPHS["full"])
    theta, x = gi.client_states(run.final)[0].generator["theta"], torch.cat(shards)
    hessian = torch.autograd.functional.hessian(lambda theta: losses(theta, x).mean() + decay / 2 * theta @ theta, theta)
    by_weight = torch.func.jacrev(lambda theta: losses(theta, x) / len(x))(theta)
    slope = torch.func.grad(lambda theta: losses(theta, held_out).mean())(theta)
    dense = by_weight @ torch.linalg.solve(hessian, slope)
    errors = [relative(gi.gossip_influence(run, metric, rounds, "aid", graph=GRAPHS["ring"], damping=1.0, iterations=300), dense) for rounds in (1, 10, 60)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-10 < 1e-3 < errors[0]


def test_single_precision_is_solved_in_double():
    run = mlp_run(GRAPHS["full"], 60, gi.SGD(0.2, weight_decay=0.5), gan=small_gan(torch.float32), batch_size=None, sizes=(4, 8, 4))
    assert run.final.generator["weight"].dtype == torch.float32
    metric = tiny_metric(run.dynamics.game)
    exact = gi.influence(run, gi.over_clients(run, metric))
    assert relative(gi.gossip_influence(run, metric, 1), exact) < 1e-5
    assert gi.gossip_influence(run, metric, 1, "aid", iterations=200)[0].dtype == torch.float64


def test_messages_and_their_bytes_are_counted():
    run = mlp_run(GRAPHS["broadcaster"], 6, sizes=(6,) * 4)
    numbers = sum(p.numel() for player in run.dynamics.game.state()[:2] for p in player.values()) + 1
    seen = [one.diagnostics for one in gi.gossip_influence(run, tiny_metric(run.dynamics.game), 5, last_steps=4)]
    assert [one.messages for one in seen] == [25 * 3, 25, 25, 25] and seen[0].rounds == 25  # 4 steps and one look at the parameters
    assert all(one.bytes_sent == one.messages * numbers * 8 for one in seen) and seen[0].disagreement > 0


def test_bad_input_gets_a_sentence():
    x, ring = tiny_data(12), GRAPHS["ring"]
    with pytest.raises(ValueError, match="every client has data, but client 1 has none: leave it out"):
        gi.train_by_gossip(tiny_gan(), [x[:6], x[:0], x[6:]], ring, 2)
    with pytest.raises(ValueError, match="2 shards are numbers and no exchange was given"):
        gi.train_by_gossip(tiny_gan(), [x, 4, 4], ring, 2)
    with pytest.raises(ValueError, match="no shard was given"):
        gi.train_by_gossip(tiny_gan(), [], ring, 2)
    with pytest.raises(ValueError, match="client 1 has 2, fewer than batch_size 4"):
        gi.train_by_gossip(tiny_gan(), [x[:10], x[10:]], ring, 2, batch_size=4)
    with pytest.raises(ValueError, match=r"indices must lie in 0\.\.5, the rows of client 1"):
        gi.record_by_gossip(lambda *_: None, {"p": torch.zeros(1)}, [[([0], None), ([6], None)]], x.split(6), ring)
    run, metric = mlp_run(), tiny_metric(tiny_gan())
    with pytest.raises(ValueError, match="there are 2 for 3 clients"):
        gi.gossip_influence(run, [metric] * 2, 1)
    with pytest.raises(ValueError, match="rounds of gossip are a whole number, 0 .nobody speaks. or more, got -1"):
        gi.gossip_influence(run, metric, -1)
    with pytest.raises(ValueError, match="unknown method 'exact': choose 'itd' or 'aid'"):
        gi.gossip_influence(run, metric, 1, "exact")
    with pytest.raises(TypeError, match="assumes a run of gi.train_by_gossip or gi.record_by_gossip, but got Trajectory"):
        gi.gossip_influence(gi.train(tiny_gan(), x, 1, 6), metric, 1)
    with pytest.raises(TypeError, match="many clients' states at once, of which average log-likelihood cannot .* pass gi.over_clients"):
        gi.influence(run, metric)
    with pytest.raises(ValueError, match="push-sum weights keep their sum for ever: use gi.gossip_influence"):
        gi.influence(run, gi.over_clients(run, metric), method="aid")
    with pytest.raises(ValueError, match="nothing from client 1 comes to client 0"):
        gi.gossip_influence(run, metric, 1, graph=lambda n, t, seed: np.eye(n))


def test_a_damping_too_large_for_the_spectrum_is_refused():
    run, _ = settled()
    for damping in (60.0, 0.0):
        with pytest.raises(FloatingPointError, match=r"a damping between 0 and min 2·Re λ/\|λ\|², here .*, for all eigenvalues λ of I − Zᵀ.* lower it"):
            gi.gossip_influence(run, ToTarget(), 2, "aid", damping=damping)
    with pytest.warns(UserWarning, match="after 20 terms the last is .* of the first: allow more iterations"):
        gi.gossip_influence(run, ToTarget(), 2, "aid", damping=1.0, iterations=20)
    with pytest.raises(FloatingPointError, match="settled where it attracts, but I − Zᵀ.*diverges under any damping"):
        gi.gossip_influence(mlp_run(steps=2, sizes=(4, 4, 4)), tiny_metric(tiny_gan()), 2, "aid")


def test_clients_as_processes_say_what_their_simulation_says(tmp_path, capsys):
    from gan_influence.batch import executors, gossip
    from gan_influence.cli.gossip import one_client
    from gan_influence.cli.main import main
    with executors.local(2) as (client, _):
        assert main(["gossip", "--clients", "3", "--steps", "3", "--rounds", "2", "--scheduler", client.scheduler.address, "--out", str(tmp_path)]) == 0
        told, results = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "results.json").read_text())["results"]
        gaps, numbers = results.pop("largest relative difference from the simulation"), 1 + 1408 + 4288
        assert 0 <= max(gaps.values()) < 1e-12 and len(told) == 4 and told[0].startswith("client 0: 25 scores, for 16 messages of")
        # Of 3 steps with one more that is run again to see that it can be, 3 that are traced back and one look at the parameters.
        assert [one["bytes_received"] for one in results.values()] == [12 * numbers * 8 * k for k in (1, 1, 2)]
        rows = list(csv.DictReader((tmp_path / "table.csv").open()))
        assert len(rows) == 75 and all(float(row["score"]) == pytest.approx(float(row["simulated"]), rel=1e-5) for row in rows)
        assert sum(float(row["score"]) != 0 for row in rows) == 60  # the last step, the players being simultaneous, reaches no generator
        shards, rules = tiny_data(30).split(10), (gi.models.fcgan(), tiny_metric(gi.models.fcgan()))
        arguments = [([10] * i + [shards[i]] + [10] * (2 - i), *rules, "ring" if i != 1 else "no_such_graph", 2, 1, 0) for i in range(3)]
        with pytest.raises(AttributeError, match="no_such_graph"):  # at once, though two others wait for the one that fails
            gossip.play(client, one_client, arguments)


def test_clients_as_processes_score_at_rest_as_their_simulation_does():
    from gan_influence.batch import executors, gossip
    from gan_influence.studies.decentralised import resting_clients, targets

    def program(exchange, i):  # the client's own shard, metric and scores; travels to its worker by value
        run, _ = resting_clients(clients=4, each=5, alone=i, exchange=exchange)
        own, = gi.gossip_influence(run, targets(0, 4)["of their own"][i], 3, "aid", graph=GRAPHS["broadcaster"], damping=1.0, iterations=60)
        return own, own.diagnostics._asdict()

    with executors.local(2) as (client, _), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a series cut short
        told = [own for own, _ in gossip.play(client, program, [(i,) for i in range(4)])]
        run, _ = resting_clients(clients=4, each=5)
        simulated = gi.gossip_influence(run, targets(0, 4)["of their own"], 3, "aid", graph=GRAPHS["broadcaster"], damping=1.0, iterations=60)
    for (own, diagnostics), expected in zip(told, simulated):
        assert own.abs().max() > 1e-3 and torch.allclose(own, expected, rtol=1e-12, atol=0)
        assert diagnostics["messages"] == expected.diagnostics.messages > 0 and diagnostics["residual"] == pytest.approx(expected.diagnostics.residual)


def test_a_client_that_waits_in_vain_says_for_whom(monkeypatch):
    gossip = optional("gan_influence.batch.gossip")
    monkeypatch.setattr(gossip, "PATIENCE", 0.01)
    alone = gossip.Participant(0)
    alone.everybody = [None, None]
    with pytest.raises(TimeoutError, match="client 0 waited 0 s of round 1 for client 1"):
        alone.exchange(np.array([[0.5, 0.5], [0.0, 0.5]]), torch.ones(1, 3))


def test_what_is_recorded_is_measured_against_a_centre(tmp_path):
    config = Decentralised(n=24, clients=4, batch_size=3, graphs=("full", "ring"), push_sums=(1,), terms=2_500, steps=3, rates=(0.1,), traced=1)
    gi.experiments.record(config, [0], tmp_path / "runs", compile=False)
    gi.experiments.gather(tmp_path / "runs", tmp_path / "small")
    rows = {(row["metric"], row["method"]): float(row["relative_error"]) for row in csv.DictReader((tmp_path / "small.csv").open())}
    assert max(rows[metric, "full"] for metric in ("shared", "of their own")) < 1e-6 < 1e-2 < min(rows["of their own", "nobody speaks"], rows["shared", "ring"])
    full, ring = csv.DictReader((tmp_path / "small_training.csv").open())
    assert float(full["relative_error"]) < 1e-12 < 1e-4 < min(float(ring["relative_error"]), float(ring["disagreement"]), float(ring["central_relative_error"]))
    assert float(full["bytes"]) == 4 * 3 * 4 * (36 + 12 + 24 + 2 + 32 + 16 + 16 + 1 + 1) * 8  # rounds · neighbours · clients · numbers
