"""What bad input gets: a sentence that names the assumption, what was seen, and what to do."""

import pytest
import torch
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric, tiny_run


def gan_with(*layers, player="discriminator", output=1):
    players = {"generator": nn.Linear(3, 2), "discriminator": nn.Linear(2, 1)}
    players[player] = nn.Sequential(nn.Linear(3 if player == "generator" else 2, 4), *layers, nn.Linear(4, 2 if player == "generator" else output))
    return gi.GAN(players["generator"].double(), players["discriminator"].double(), latent_dim=3)


@pytest.mark.parametrize("player", ["generator", "discriminator"])
@pytest.mark.parametrize("layer, message", [(nn.BatchNorm1d(4), "BatchNorm1d, which mixes the instances of a batch: use GroupNorm"),
                                            (nn.Dropout(0.2), "Dropout, which draws random numbers: remove it")])
def test_layers_that_couple_instances_are_refused(player, layer, message):
    with pytest.raises(ValueError, match=f"layer '1' of the {player} is {message}"):
        gan_with(layer.train(), player=player)
    gan_with(layer.eval(), player=player)  # a fixed affine map, or nothing: harmless


class Batchwise(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


@pytest.mark.parametrize("layer, message", [(Batchwise(), "must not depend on the others of its batch"), (Noisy(), "two calls on the same input differ")])
def test_home_made_coupling_is_found_by_trying(layer, message):
    with pytest.raises(ValueError, match=message):
        gi.train(gan_with(layer), tiny_data(), 1, 6)


@pytest.mark.parametrize("last, low, high", [(nn.Tanh, -1, 1), (nn.Sigmoid, 0, 1)])
def test_data_that_cannot_be_generated(last, low, high):
    gan = gi.GAN(nn.Sequential(nn.Linear(3, 2), last()), nn.Linear(2, 1), latent_dim=3)
    inside = low + (high - low) * torch.rand(20, 2)
    gi.train(gan, inside, epochs=1, batch_size=10)
    with pytest.raises(ValueError, match=rf"ends in {last.__name__} and makes numbers within \[{low}, {high}\], but the data lies in .*255.*: rescale"):
        gi.train(gan, torch.cat([inside, torch.tensor([[low, 255.0]])]), epochs=1, batch_size=10)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"one logit per instance.*for 6 instances it returned shape \(6, 3\)"):
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
