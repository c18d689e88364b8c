"""What a run assumes, each assumption broken once: the numbers stay right, or a sentence says why there are none."""

import json
import multiprocessing
import os
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric, tiny_run
from gan_influence.readings.derivative import check_derivative
from gan_influence.tools import storage


def gan_of(generator=(), discriminator=(), dtype=torch.float64, head=None, **options) -> gi.GAN:
    """Layers between two linear ones, in either player."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        players = (nn.Sequential(nn.Linear(3, 4), *generator, nn.Linear(4, 2)), nn.Sequential(nn.Linear(2, 4), *discriminator, head or nn.Linear(4, 1)))
    return gi.GAN(*(player.to(dtype) for player in players), latent_dim=3, **options)


def trained(gan: gi.GAN, **options) -> gi.Trajectory:
    return gi.train(gan, tiny_data(dtype=gan.dtype), **{"epochs": 3, "batch_size": 6, "optimizer": gi.SGD(0.1), "seed": 7, **options})


# The derivative is not taken on trust.


class Stop(nn.Module):
    def forward(self, x):
        return x + F.tanh(x).detach()


class Wrong(torch.autograd.Function):
    """Right value and gradient; the gradient's own derivative is cut."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].detach().cos()


class FirstOrder(nn.Module):
    def forward(self, x):
        return Wrong.apply(x)


@pytest.mark.parametrize("layer", [Stop(), FirstOrder()])
@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_a_wrong_derivative_is_refused(layer, player):
    run = trained(gan_of(**{player: [layer]}))
    with pytest.raises(ValueError, match=rf"differs from a central difference in .*{player}\.0\.weight"):
        gi.influence(run, tiny_metric(run.gan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.SiLU, nn.LeakyReLU])
@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
def test_a_right_derivative_passes(activation, order, dtype):
    for seed in range(5):
        check_derivative(gi.train(tiny_gan(activation, dtype=dtype, seed=seed), tiny_data(dtype=dtype), 2, 6, gi.SGD(0.1), order, seed))


def test_published_networks_pass():
    check_derivative(gi.train(gi.models.fcgan(), tiny_data(200), 1))
    check_derivative(gi.train(gi.models.dcgan(width=4), torch.rand(20, 1, 28, 28) * 2 - 1, 1, 10))
    check_derivative(gi.train(gi.models.lqgan(), tiny_data(20)[:, :1], 1, 10))


@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm, lambda layer: parametrizations.weight_norm(layer, dim=None)])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_normalisation_is_differentiated_rightly(norm):
    """Torch's own double backward of it is wrong; the influence equals the slope of removing a little."""
    gan = gan_of(discriminator=[nn.Tanh(), norm(nn.Linear(4, 4)), nn.Tanh()])
    run = trained(gan)
    metric = tiny_metric(run.gan)
    slopes = sum(gi.experiments.fractional_leave_one_out(run, metric, range(6), fraction) for fraction in (1e-4, -1e-4)) / 2
    torch.testing.assert_close(gi.influence(run, metric)[:6], slopes, rtol=1e-5, atol=1e-9)
    assert torch.equal(gan.generate(gan.state(), gan.sample_latents(2, 0)), gan.generator(gan.sample_latents(2, 0)))


@pytest.mark.parametrize("norm", [spectral_norm, parametrizations.spectral_norm])
def test_spectral_normalisation_is_refused_by_name(norm):
    with pytest.raises(ValueError, match="layer '2' of the discriminator has spectral normalisation, which keeps a memory"):
        gan_of(discriminator=[nn.Tanh()], head=norm(nn.Linear(4, 1)))


# What is done afterwards changes nothing.


def test_the_users_modules_may_change():
    generator, discriminator = tiny_gan(seed=3).generator, nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1)).double().eval()
    gan = gi.GAN(generator, discriminator, latent_dim=3)
    run = trained(gan)
    before, metric = run.replay(), tiny_metric(run.gan)
    scores = gi.influence(run, metric)
    discriminator.train()
    generator[1] = nn.ReLU()
    gan.loss = gi.losses.LOSSES["hinge"]
    gan.apply_discriminator.module[1] = nn.ReLU()
    with torch.no_grad():
        generator[0].weight.zero_()
    assert all(map(torch.equal, run.replay().tensors(), before.tensors()))
    assert torch.equal(gi.influence(run, metric), scores)
    gan.load(run.final)
    assert torch.equal(generator[0].weight, run.final.generator["0.weight"]), "load writes into the user's modules"


def test_what_a_run_hands_out_is_not_its_own():
    run = tiny_run()
    kept = [p.clone() for p in run.final.tensors()]
    for state in (run.final, run.initial, run.state(4), run.replay(run.steps), gi.retrain(run, remove=[])):
        for p in state.tensors():
            p.zero_()
    assert all(map(torch.equal, run.final.tensors(), kept)) and run.initial.generator["0.weight"].any() and run.state(4).generator["0.weight"].any()


@pytest.mark.parametrize("change", [lambda x: x.copy_(x.flip(0)), lambda x: x.numpy().__setitem__((3, 0), 9.0)])
def test_data_that_changed_is_noticed_by_every_reading(change, tmp_path):
    run = tiny_run()
    metric = tiny_metric(run.gan)
    change(run.x)
    for reading in (lambda: gi.influence(run, metric), lambda: gi.leave_one_out(run, metric, [1]), lambda: gi.retrain(run, [1]),
                    lambda: gi.parameter_influence(run, 1), lambda: run.save(tmp_path)):
        with pytest.raises(ValueError, match=r"x has been changed since: leave it alone, or train on x.clone\(\)"):
            reading()


def test_two_threads_with_one_gan():
    gan, found = tiny_gan(), {}
    x, own = tiny_data(240), [p.clone() for p in gan.generator.parameters()]
    one = gi.train(gan, x, 3, 6, seed=0)

    def work(i: int) -> None:
        found[i] = gi.influence(gi.train(gan, x, 3, 6, seed=0), tiny_metric(gan))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(found) == 4 and all(torch.equal(scores, gi.influence(one, tiny_metric(gan))) for scores in found.values())
    assert all(map(torch.equal, gan.generator.parameters(), own))


def test_one_function_for_two_threads():
    """Also where both call the very same networks, as a metric does that holds a GAN of its own."""
    gan = tiny_gan()
    z, states, wrong = gan.sample_latents(500, 0), [gan.state(), gan.state().map(lambda p: 2 * p)], []
    expected = [gan.generate(state, z) for state in states]

    def work(which: int) -> None:
        wrong.extend(i for i in range(300) if not torch.equal(gan.generate(states[which], z), expected[which]))

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1, 0, 1)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not wrong


# What is loaded is believed when it replays.


class Leaky(nn.LeakyReLU):
    def __init__(self):
        super().__init__(0.2)


@pytest.mark.parametrize("other", [{"activation": nn.ReLU}, {"activation": Leaky}, {"loss": gi.losses.LOSSES["least_squares"]}, {"optimizer": gi.SGD(1.0)}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_loaded_as_something_else_is_refused(other, dtype, tmp_path):
    custom = {} if "activation" in other or "optimizer" in other else {"loss": gi.losses.Loss(*gi.losses.LOSSES["wasserstein"])}
    run = tiny_run(epochs=5, dtype=dtype, **custom)
    run.save(tmp_path)
    gi.Trajectory.load(tmp_path, tiny_gan(dtype=dtype, **custom), run.x)
    gan = tiny_gan(dtype=dtype, **custom | {key: value for key, value in other.items() if key != "optimizer"})
    with pytest.raises(ValueError, match="assumes that its steps can be taken again"):
        gi.Trajectory.load(tmp_path, gan, run.x, other.get("optimizer"))


def test_every_flipped_bit_is_noticed(tmp_path):
    run = tiny_run(epochs=1)
    run.save(tmp_path)
    path, random = tmp_path / "states.safetensors", np.random.default_rng(0)
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for at in (*random.integers(0, length, 20), *random.integers(length, len(whole), 40)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            again = gi.Trajectory.load(tmp_path, run.gan, run.x)
        except ValueError:
            continue
        assert at < length and all(map(torch.equal, again.final.tensors(), run.final.tensors())), "only in the header's words, where it does no harm"


@pytest.mark.parametrize("change", [{"data": []}, {"gan": None}, {"stride": "1"}, {"optimizer": 3}, {"schedule": [1]}])
def test_a_header_of_other_types_is_refused(change, tmp_path):
    run = tiny_run(epochs=1)
    run.save(tmp_path)
    header, tensors = json.loads((tmp_path / "trajectory.json").read_text()), load_file(tmp_path / "states.safetensors")
    save_file(tensors, tmp_path / "states.safetensors", metadata={"header": json.dumps(header | change)})
    with pytest.raises(ValueError, match="does not hold a whole trajectory"):
        gi.Trajectory.load(tmp_path, run.gan, run.x)
    (tmp_path / "trajectory.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="does not hold a whole trajectory"):
        gi.Trajectory.load(tmp_path, run.gan, run.x)


def test_savers_of_one_folder_take_turns_and_clean_up(tmp_path):
    runs = [tiny_run(epochs=epochs) for epochs in (1, 2)]
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "states.safetensors").write_bytes(b"what a killed process left")
    with ThreadPoolExecutor(2) as pool:
        saving = [pool.submit(lambda run=run: [run.save(tmp_path) for _ in range(20)]) for run in runs]
        while not all(one.done() for one in saving):
            if (tmp_path / "trajectory.json").exists():
                assert gi.Trajectory.load(tmp_path, runs[0].gan, runs[0].x).steps in (4, 8)
        [one.result() for one in saving]
    assert sorted(os.listdir(tmp_path)) == ["states.safetensors", "trajectory.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "states.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_another_thread_count_is_said(tmp_path):
    run = tiny_run(epochs=1)
    run.save(tmp_path)
    header, tensors = json.loads((tmp_path / "trajectory.json").read_text()) | {"threads": 3}, load_file(tmp_path / "states.safetensors")
    assert header["checksum"] == storage._checksum(tensors)
    save_file(tensors, tmp_path / "states.safetensors", metadata={"header": json.dumps(header)})
    with pytest.warns(UserWarning, match="recorded with 3 threads and is read with 1"):
        gi.Trajectory.load(tmp_path, run.gan, run.x)


def test_a_run_travels_by_pickle():
    run = tiny_run()
    metric = tiny_metric(run.gan)
    run.replay(), run.stepper(models=True)
    again = pickle.loads(pickle.dumps(run))
    assert torch.equal(gi.influence(again, metric), gi.influence(run, metric))


# What torch is doing meanwhile.


def test_modes_in_which_torch_computes_otherwise():
    run = tiny_run()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="autocast is on"):
        tiny_run()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference mode is on"):
        gi.influence(run, tiny_metric(run.gan))
    with torch.no_grad():
        assert gi.influence(run, tiny_metric(run.gan)).any()


def _influence_in_child(run, queue):
    try:
        queue.put(float(gi.influence(run, tiny_metric(run.gan)).abs().sum()))
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_says_that_threads_are_gone():
    run, context = tiny_run(), multiprocessing.get_context("fork")
    queue = context.Queue()
    for threads, expected in ((2, "do not survive a fork"), (1, None)):
        torch.set_num_threads(threads)
        child = context.Process(target=_influence_in_child, args=(run, queue))
        child.start()
        torch.set_num_threads(1)
        answer = queue.get(timeout=60)
        child.join()
        assert expected in answer if expected else answer == float(gi.influence(run, tiny_metric(run.gan)).abs().sum())


# Arguments.


class Counts(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x if self.calls < 10_000 else 2 * x


class NoisyInCrowds(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x) if len(x) > 5 else x


class Silent(nn.Module):
    """Noise whose strength starts at zero."""

    def __init__(self):
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.strength * torch.randn_like(x)


@pytest.mark.parametrize("layer, message", [(Counts(), "a forward pass changed 'calls' of its layer '1' (Counts)"),
                                            (NoisyInCrowds(), "it draws random numbers"), (Silent(), "it draws random numbers")])
def test_networks_that_remember_or_draw(layer, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        trained(gan_of(discriminator=[layer]))


def test_what_a_network_remembers_elsewhere_is_found_by_taking_steps_again():
    calls = []

    class Secretive(nn.Module):
        def forward(self, x):
            calls.append(1)
            return x * (1 + 1e-3 * len(calls))

    with pytest.raises(ValueError, match="remembers something between calls|two calls on the same input differ"):
        trained(gan_of(discriminator=[Secretive()]))


def test_players_that_do_not_fit_together():
    shared = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="the generator's '0.weight' is the discriminator's '0.weight': give each a copy"):
        gi.GAN(nn.Sequential(shared), nn.Sequential(shared, nn.Linear(2, 1)), latent_dim=2)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="all of float32 or all of float64, but the generator's are of b?float16"):
            gan_of(dtype=dtype)
    with pytest.raises(ValueError, match="the generator's are of float32 and the discriminator's of float64"):
        gi.GAN(nn.Linear(2, 2), nn.Linear(2, 1).double(), latent_dim=2)
    with pytest.raises(ValueError, match="LazyLinear, whose shape is not known yet"):
        gi.GAN(nn.LazyLinear(2), nn.Linear(2, 1), latent_dim=2)
    with pytest.raises(ValueError, match=r"latents of shape \(B, 5\), as latent_dim=5 says"):
        trained(gi.GAN(nn.Linear(3, 2), nn.Linear(2, 1), latent_dim=5))


def test_a_parameter_that_nobody_uses_stays_as_it_is():
    class Idle(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)
            self.unused = nn.Parameter(torch.ones(3))

    run = trained(gan_of(head=Idle()))
    assert torch.equal(run.final.discriminator["1.unused"], torch.ones(3, dtype=torch.float64)) and gi.influence(run, tiny_metric(run.gan)).any()


@pytest.mark.parametrize("options, message", [
    ({"epochs": 0}, "epochs is a whole number, 1 or more, but got 0"), ({"epochs": -1}, "epochs is a whole"), ({"epochs": True}, "but got True"),
    ({"epochs": 1.0}, "but got 1.0"), ({"batch_size": 2.5}, "batch_size is a whole"), ({"stride": -1}, "stride is a whole number, 1 or more"),
    ({"stride": 0}, "stride is a whole"), ({"dense_epochs": -1}, "dense_epochs is a whole number, 0 or more"), ({"seed": -1}, "a seed is an integer"),
    ({"optimizer": 0.1}, r"such as gi.SGD\(1e-3\), with init, update and learning_rates, but 0.1 has no init"),
    ({"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)}, "has no init"),
    ({"optimizer": gi.SGD(-0.1)}, "a learning rate is 0 or more, but got -0.1"), ({"optimizer": gi.SGD([0.1] * 13)}, "for 13 steps, but the run has 12"),
    ({"optimizer": gi.SGD([0.1, 0.2])}, "for 2 steps, but the run has 12"),
])
def test_arguments_of_train(options, message):
    with pytest.raises(ValueError, match=message):
        trained(tiny_gan(), **options)


@pytest.mark.parametrize("x, message", [
    (gi.data.normal_2d(20, 5, 5), "several parts, Split: pass one of them"),
    (torch.utils.data.DataLoader(torch.zeros(4, 2)), "a loader, DataLoader: pass the tensor"),
    (pd.DataFrame(np.zeros((4, 2))), "a table, DataFrame"), (torch.zeros(20, 2).to_sparse(), "a dense tensor of real numbers, but got torch.sparse_coo"),
    (torch.zeros(20, 2, dtype=torch.complex64), "complex ones"), ("data.pt", "one tensor or array"), (None, "one tensor or array"),
])
def test_data_of_other_kinds(x, message):
    with pytest.raises(ValueError, match=message):
        gi.train(tiny_gan(), x, 1, 2)


@pytest.mark.parametrize("last_epochs", [1.5, "1", True, -1, 4])
def test_windows_are_whole_epochs(last_epochs):
    run = tiny_run()
    with pytest.raises(ValueError, match="a whole number between 1 and the run's 3 epochs"):
        gi.influence(run, tiny_metric(run.gan), last_epochs)


def test_aid_says_when_its_series_has_not_come_to_rest():
    gan, x = gi.models.lqgan(), tiny_data(20)[:, :1]
    run = gi.train(gan, x, 2, 20, gi.SGD(1e-3), "simultaneous")
    metric = gi.metrics.AverageLogLikelihood(x, gan.sample_latents(20, 0))
    with pytest.raises(FloatingPointError, match="comes to rest, but after 30 terms the last is still .*allow more iterations"):
        gi.influence(run, metric, method="aid", iterations=30)
