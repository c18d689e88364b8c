"""The orders of `gi.train` against loops in plain torch; a step of one's own; what a run's states cost."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gan_influence as gi
from conftest import tiny_data


def normed_gan(**options) -> gi.GAN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
        discriminator = nn.Sequential(nn.Linear(2, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).double()
    return gi.GAN(generator, discriminator, 3, **options)


def plain_loop(run: gi.Trajectory, updates: int) -> tuple[nn.Module, nn.Module]:
    """The run's own draws through a loop as people write it, with torch's modules and torch's Adam; a large eps, as some gradients are noise."""
    G, D = copy.deepcopy(run.gan.generator), copy.deepcopy(run.gan.discriminator)
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), 0.02, betas=(0.5, 0.9), eps=1e-4) for net in (G, D))

    def discriminator_pays(real, fake):
        return F.softplus(-D(real)).mean() + F.softplus(D(fake.detach())).mean()

    def step(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for t in range(run.steps):
        batch = run.batch(t)
        reals, latents = batch.x.chunk(updates), batch.z.chunk(updates)
        if run.order == "generator first":
            fake = G(latents[0])
            step(opt_g, F.softplus(-D(fake)).mean())
            for k, (real, z) in enumerate(zip(reals, latents)):
                step(opt_d, discriminator_pays(real, G(z) if k else fake))
        elif run.order == "alternating":
            for real, z in zip(reals, latents):
                step(opt_d, discriminator_pays(real, G(z)))
            step(opt_g, F.softplus(-D(G(batch.generator_z))).mean())
        else:
            for real, z in list(zip(reals, latents))[:-1]:
                step(opt_d, discriminator_pays(real, G(z)))
            opt_g.zero_grad(), opt_d.zero_grad()
            on_real, fooled = D(reals[-1]), D(G(latents[-1]))  # one pass over the fakes serves both players
            (F.softplus(-on_real).mean() + F.softplus(fooled).mean()).backward(inputs=list(D.parameters()), retain_graph=True)
            F.softplus(-fooled).mean().backward(inputs=list(G.parameters()))
            opt_g.step(), opt_d.step()
    return G, D


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("order", ["alternating", "simultaneous", "generator first"])
def test_an_order_is_the_loop_of_that_name(order, updates):
    run = gi.train(normed_gan(), tiny_data(24), 2, 4, gi.Adam(0.02, betas=(0.5, 0.9), eps=1e-4), order, discriminator_steps=updates)
    for module, own, buffers in zip(plain_loop(run, updates), run.final[:2], run.final[4:6]):
        found = module.state_dict()
        for name, expected in (own | buffers).items():
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-12)
    assert run.steps == 2 * 24 // (4 * updates) and len(run.schedule.epoch_starts()) == 2


def descent(state, batch, weights):
    """Full gradients of ½Σ w_i (p·a_i − b_i)² / B, for which everything is known in closed form."""
    (rows, rate), p = batch, state.generator["p"]
    a, b = rows[:, :2], rows[:, 2]
    return state._replace(generator={"p": p - rate * ((weights * (a @ p - b))[:, None] * a).mean(0)})


class First:
    name, higher_is_better = "first parameter", True

    def __call__(self, gan, state):
        return state.generator["p"][0]


@pytest.mark.parametrize("method, tolerance", [("itd", 1e-9), ("aid", 1e-9)])
def test_a_step_of_ones_own(method, tolerance):
    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    run = gi.record(descent, {"p": torch.zeros(2, dtype=torch.float64)}, [(range(20), 0.3)] * 400, x)
    a, b = x[:, :2], x[:, 2]
    best, hessian = torch.linalg.lstsq(a, b).solution, a.T @ a
    torch.testing.assert_close(run.final.generator["p"], best)
    expected = (torch.linalg.solve(hessian, a.T) * (a @ best - b))[0]  # of least squares: dp/dw_j = −H⁻¹ a_j (a_j·p − b_j)
    scores = gi.influence(run, First(), method=method)
    torch.testing.assert_close(scores, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    if method == "itd":
        without = torch.linalg.lstsq(a[1:], b[1:]).solution
        torch.testing.assert_close(gi.leave_one_out(run, First(), [0]), (without - best)[:1])
        torch.testing.assert_close(gi.parameter_influence(run, 3).generator["p"][0], scores[3])
        assert run.gan is None and "a step of your own" in repr(run)
        with pytest.raises(ValueError, match="this one's step or optimiser is of your own"):
            run.save("nowhere")


def test_a_step_of_ones_own_draws_from_the_training_set():
    with pytest.raises(ValueError, match=r"indices must lie in 0..3"):
        gi.record(descent, {"p": torch.zeros(2)}, [([0, 4], 0.1)], torch.zeros(4, 3))


@pytest.mark.parametrize("optimizer", [gi.SGD(0.1, momentum=0.9), gi.Adam(0.1), (gi.Adam(0.1), gi.RMSprop(0.1, momentum=0.5))], ids=str)
@pytest.mark.parametrize("average", [None, 0.9])
def test_states_cost_what_was_predicted(optimizer, average, tmp_path):
    gan, x = normed_gan(), tiny_data(24)
    predicted = gi.trajectory_bytes(gan, 24, 3, 4, optimizer, average=average)
    run = gi.train(gan, x, 3, 4, optimizer, average=average)
    run.save(tmp_path)
    assert run.nbytes == predicted
    held = sum(file.stat().st_size for file in tmp_path.iterdir())
    header = (tmp_path / "trajectory.json").stat().st_size
    assert held <= predicted + 2 * header + 150 * sum(len(state.tensors()) for state in run.states.values()) + 4096  # safetensors names every tensor
