"""What bad input gets: a sentence that names the assumption, what was seen, and what to do."""

import numpy as np
import pytest
import torch
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric, tiny_run


def gan_with(*layers, player="discriminator", output=1):
    players = {"generator": nn.Linear(3, 2), "discriminator": nn.Linear(2, 1)}
    players[player] = nn.Sequential(nn.Linear(3 if player == "generator" else 2, 4), *layers, nn.Linear(4, 2 if player == "generator" else output))
    return gi.GAN(players["generator"].double(), players["discriminator"].double(), latent_dim=3)


class OwnBatchNorm(nn.BatchNorm1d):
    pass


@pytest.mark.parametrize("player", ["generator", "discriminator"])
@pytest.mark.parametrize("layer, message", [
    (nn.BatchNorm1d(4, momentum=None),
     r"BatchNorm1d, averages its statistics over all batches \(momentum=None\): use nn.BatchNorm1d, 2d or 3d with a momentum"),
    (OwnBatchNorm(4), "OwnBatchNorm, is not torch's own BatchNorm: use nn.BatchNorm1d"), (nn.SyncBatchNorm(4), "SyncBatchNorm, is not torch's own BatchNorm"),
])
def test_batch_norms_without_a_pure_form_are_refused(player, layer, message):
    with pytest.raises(ValueError, match=f"layer '1' of the {player}, {message}"):
        gan_with(layer.train(), player=player)
    gan_with(layer.eval(), player=player)  # a fixed affine map: harmless


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class SharedDeviation(nn.Linear):
    """Minibatch standard deviation, as StyleGAN's discriminators have it."""

    def __init__(self):
        super().__init__(5, 4)

    def forward(self, x):
        return super().forward(torch.cat([x, (x.var(0) + 1e-8).sqrt().mean().expand(len(x), 1)], 1))


class NumpyNoise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.from_numpy(np.random.standard_normal(x.shape))


class Counting(nn.Module):
    """What it counts decides nothing yet, and is in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x


@pytest.mark.parametrize("player, layer, message", [
    ("discriminator", Centred(), r"layer '1' \(Centred\) gave another when one of them was taken away"),
    ("discriminator", SharedDeviation(),
     r"layer '1' \(SharedDeviation\) gave another.*a minibatch standard deviation, or packing, has no pure form; take it out"),
    *((player, *broken) for player in ("generator", "discriminator") for broken in (
        (NumpyNoise(), f"the {player} must be a function of its arguments and of torch's seed.*take out what draws from numpy"),
        (Counting(), rf"the {player} must be a function.*changed 'seen' of its layer '1' \(Counting\): take out what counts"))),
])
def test_home_made_coupling_noise_and_memory_are_found_by_trying(player, layer, message):
    with pytest.raises(ValueError, match=message):
        gi.train(gan_with(layer, player=player), tiny_data(), 1, 6)


def test_packed_instances_are_refused():
    packed = nn.Sequential(nn.Unflatten(0, (-1, 2)), nn.Flatten(), nn.Linear(4, 1)).double()
    with pytest.raises(ValueError, match=r"for 4 instances it returned shape \(2, 1\): minibatch packing has no instance to remove"):
        gi.train(gi.GAN(nn.Linear(3, 2).double(), packed, latent_dim=3), tiny_data(), 1, 6)


class FunctionalTanh(nn.Module):
    def forward(self, x):
        return torch.tanh(x)


class Inside(nn.Sequential):
    """A Tanh that is registered last, but used inside."""

    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.Linear(4, 2), nn.Tanh())

    def forward(self, z):
        return self[1](self[2](self[0](z)))


@pytest.mark.parametrize("last, low, high", [(nn.Tanh, -1, 1), (nn.Sigmoid, 0, 1), (FunctionalTanh, -1, 1)])
def test_data_that_cannot_be_generated(last, low, high):
    gan = gi.GAN(nn.Sequential(nn.Linear(3, 2), last()), nn.Linear(2, 1), latent_dim=3)
    inside = low + (high - low) * torch.rand(20, 2)
    gi.train(gan, inside, epochs=1, batch_size=10)
    outside = torch.cat([torch.tensor([[low, 255.0]]), inside])
    with pytest.raises(ValueError, match=rf"the generator makes numbers within \[{low}, {high}\], but the data lies in .*255\]: rescale"):
        gi.train(gan, outside, epochs=1, batch_size=10)
    gi.train(gi.GAN(Inside(), nn.Linear(2, 1), latent_dim=3), outside / 100, epochs=1, batch_size=10)


def test_data_that_cannot_be_generated_in_the_last_row():
    gan, x = gi.GAN(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), nn.Linear(2, 1), latent_dim=3), torch.rand(20, 2)
    x[-1] = 255
    with pytest.raises(ValueError, match=r"the generator makes numbers within \[-1, 1\], but the data lies in .*255\]: rescale"):
        gi.train(gan, x, epochs=1, batch_size=10)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"one number per instance.*for 4 instances it returned shape \(4, 3\).*override GAN.discriminator_losses"):
        gi.train(gan_with(output=3), tiny_data(), 1, 6)
    with pytest.raises(ValueError, match=r"instances of shape \(2,\), but the data has \(5,\)"):
        gi.train(tiny_gan(), torch.zeros(10, 5), 1, 6)
    with pytest.raises(ValueError, match=r"between 1 and n = 24.*batch_size is 100"):
        gi.train(tiny_gan(), tiny_data(), 1)
    with pytest.raises(ValueError, match="unknown loss 'hing'"):
        tiny_gan(loss="hing")
    with pytest.raises(ValueError, match="unknown order 'both'"):
        tiny_run("both")


def test_numbers_that_are_not_finite_are_named_with_their_step():
    x = tiny_data()
    x[4, 1] = float("nan")
    with pytest.raises(ValueError, match="instance 4 holds a NaN"):
        gi.train(tiny_gan(), x, 1, 6)
    rates = [0.1] * 8
    rates[5] = float("inf")
    with pytest.raises(FloatingPointError, match="after step 5 a parameter was NaN or infinite: lower the learning rate"):
        gi.train(tiny_gan(), tiny_data(), 2, 6, gi.SGD(rates), stride=4)


def test_a_cotangent_that_is_not_finite_is_named_with_its_step():
    class Cliff(nn.Module):
        """Finite values and gradients, but an infinite second derivative at instance 0's first coordinate."""

        def forward(self, x):
            edge = (x[:, 0] - tiny_data()[0, 0]).abs()
            return (edge**1.5).unsqueeze(1) * self.weight + x @ self.tilt

        def __init__(self):
            super().__init__()
            self.weight, self.tilt = nn.Parameter(torch.ones(1, dtype=torch.float64)), nn.Parameter(torch.ones(2, 1, dtype=torch.float64))

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.Parameter(tiny_data()[0].clone())

        def forward(self, z):
            return self.at + 0 * z[:, :1]

    gan = gi.GAN(Shift(), Cliff(), latent_dim=3)
    run = gi.train(gan, tiny_data(), 1, 6, gi.SGD(generator=0.0, discriminator=0.1), order="simultaneous")
    with pytest.raises(FloatingPointError, match=r"pulling it back through step 3 gave a NaN or an infinity.*last_epochs"):
        gi.influence(run, tiny_metric(gan))


def test_indices_out_of_range():
    run = tiny_run()
    metric = tiny_metric(run.gan)
    for attempt in (lambda: gi.leave_one_out(run, metric, [24]), lambda: gi.retrain(run, [-1]), lambda: gi.parameter_influence(run, 24)):
        with pytest.raises(IndexError, match=r"instances are 0\.\.23"):
            attempt()
    with pytest.raises(IndexError, match=r"states 0\.\.12, but state 13"):
        run.state(13)
    with pytest.raises(TypeError, match="mask was passed"):
        gi.retrain(run, torch.zeros(24, dtype=torch.bool))
    for epochs in (0, 4):
        with pytest.raises(ValueError, match="between 1 and the run's 3 epochs"):
            gi.influence(run, metric, last_epochs=epochs)


class Metric:
    name, higher_is_better = "made up", True

    def __init__(self, function):
        self.function = function

    def __call__(self, gan, state):
        return self.function(gan, state)


@pytest.mark.parametrize("function, error, message", [
    (lambda gan, state: state.discriminator["0.weight"].sum(), ValueError, "made up does not reach it: build its value from gan.generate"),
    (lambda gan, state: gan.generate(state, gan.sample_latents(3, seed=0)).detach().sum(), ValueError, "does not reach it"),
    (lambda gan, state: gan.generate(state, gan.sample_latents(3, seed=0)), FloatingPointError, "finite scalar metric"),
    (lambda gan, state: gan.generate(state, gan.sample_latents(3, seed=0)).sum() * float("nan"), FloatingPointError,
     r"made up is nan at the end of the run \(step 12\)"),
    (lambda gan, state: (state.generator["0.weight"].sum() * 0).sqrt(), FloatingPointError, "gradient of made up"),
])
def test_metrics_that_cannot_be_pulled_back(function, error, message):
    with pytest.raises(error, match=message):
        gi.influence(tiny_run(), Metric(function))


def test_unknown_method():
    run = tiny_run()
    with pytest.raises(ValueError, match="choose 'itd' or 'aid'"):
        gi.influence(run, tiny_metric(run.gan), method="exact")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_data_and_networks_on_two_devices():
    with pytest.raises(ValueError, match="move one of them"):
        gi.train(tiny_gan(device="cuda"), tiny_data(), 1, 6)
