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
from gan_influence.tools.noise import dice


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


class Noise(nn.Module):
    """Noise whose strength starts at zero."""

    def __init__(self):
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.strength * torch.randn_like(x) if self.training else x


LAYERS = {
    "batch norm": lambda: [nn.BatchNorm1d(4), nn.Tanh()],
    "batch norm without running statistics": lambda: [nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh()],
    "dropout": lambda: [nn.Tanh(), nn.Dropout(0.3)], "noise": lambda: [nn.Tanh(), Noise()],
    "spectral norm": lambda: [nn.Tanh(), parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh()],
    "old spectral norm": lambda: [nn.Tanh(), spectral_norm(nn.Linear(4, 4)), nn.Tanh()],
}


@pytest.mark.parametrize("player", ["generator", "discriminator"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_layers_with_a_memory_or_a_die(name, player, tmp_path):
    """They train, are replayed bit for bit, also from a file, and the influence is the slope of removing a little; leave-one-out is a replay."""
    torch.manual_seed(4)
    gan = gan_of(**{player: LAYERS[name]()})
    run = trained(gan, stride=5)
    before = gan.networks[0].training, gan.state()
    buffers = getattr(run.final, f"{player}_buffers")
    assert bool(buffers) == (name in ("batch norm", "spectral norm", "old spectral norm")), "what training changes is in the state"
    assert not any(torch.equal(now, getattr(run.initial, f"{player}_buffers")[key]) for key, now in buffers.items())
    assert run.draws_within == (name in ("dropout", "noise"))
    torch.manual_seed(99)  # what a global seed is meanwhile changes nothing
    metric, expected = tiny_metric(run.gan), list(run.final.tensors())
    run.save(tmp_path)
    for again in (run, gi.Trajectory.load(tmp_path, gan, run.x)):
        assert all(map(torch.equal, again.replay(1).tensors(), expected))
    scores = gi.influence(run, metric)
    slopes = sum(gi.experiments.fractional_leave_one_out(run, metric, range(6), fraction) for fraction in (1e-4, -1e-4)) / 2
    assert slopes.abs().min() > 1e-9
    torch.testing.assert_close(scores[:6], slopes, rtol=0, atol=1e-5 * float(scores.abs().max()))
    alone = torch.tensor([float(metric(run.gan, gi.retrain(run, [j]))) for j in range(3)], dtype=torch.float64) - float(metric(run.gan, run.final))
    torch.testing.assert_close(gi.leave_one_out(run, metric, range(3)), alone, rtol=0, atol=1e-9 * float(alone.abs().max()))
    assert gan.networks[0].training == before[0] and all(map(torch.equal, gan.state().tensors(), before[1].tensors()))


def test_a_noise_layers_strength_is_trained():
    """That it is zero at first hides the layer from a look at outputs, but not from one at torch's generator."""
    run = trained(gan_of(discriminator=[nn.Tanh(), Noise()]))
    assert run.draws_within and run.final.discriminator["2.strength"].abs() > 0
    throws = [throw for t in range(run.steps) for throw in run.batch(t).dice]
    assert len(set(throws)) == len(throws) > run.steps and trained(gan_of(discriminator=[nn.Tanh(), Noise()]), seed=8).batch(0).dice != run.batch(0).dice


def test_what_is_generated_with_noise_is_the_same_at_every_call_before_a_run_too():
    class Always(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    gan, before = gan_of(generator=[Always()]), torch.get_rng_state()
    z = gan.sample_latents(3, seed=0)
    assert torch.equal(gan.generate(gan.state(), z), gan.generate(gan.state(), z)) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("layers", [[nn.Linear(4, 4), nn.Tanh()], [nn.BatchNorm1d(4), nn.Tanh()]], ids=["linear", "batch norm"])
def test_parameters_that_need_no_gradient_are_constants(layers):
    for p in layers[0].parameters():
        p.requires_grad_(False)
        nn.init.uniform_(p, 0.2, 0.8)
    gan = gan_of(discriminator=layers, weight_decay=0.1)
    frozen = [p.clone() for p in layers[0].parameters()]
    run = trained(gan, optimizer=gi.SGD(0.1, momentum=0.5, weight_decay=0.5))
    assert list(run.final.discriminator) == ["0.weight", "0.bias", "3.weight", "3.bias"] and not any(".1." in name for name in run.final.discriminator_memory)
    gan.load(run.final)
    own, trained_ones = gan.discriminator, dict(run.gan.networks[1].named_parameters())
    assert all(map(torch.equal, own[1].parameters(), frozen)) and torch.equal(trained_ones["1.weight"], frozen[0])
    assert torch.equal(own[0].weight, run.final.discriminator["0.weight"])
    metric = tiny_metric(run.gan)
    slopes = sum(gi.experiments.fractional_leave_one_out(run, metric, range(6), fraction) for fraction in (1e-4, -1e-4)) / 2
    torch.testing.assert_close(gi.influence(run, metric)[:6], slopes, rtol=1e-4, atol=1e-9)


# What is done afterwards changes nothing.


@pytest.mark.parametrize("training", [False, True])
def test_the_users_modules_may_change(training):
    layers = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1)
    generator, discriminator = tiny_gan(seed=3).generator, nn.Sequential(*layers).double().train(training)
    gan = gi.GAN(generator, discriminator, latent_dim=3)
    run = trained(gan)
    before, metric = run.replay(), tiny_metric(run.gan)
    scores = gi.influence(run, metric)
    discriminator.train(not training)
    assert all(map(torch.equal, trained(gan).final.tensors(), before.tensors())), "nor does it change what the GAN is trained as"
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
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert default == torch.float32, "it belongs to all threads"
    assert len(found) == 4 and all(torch.equal(scores, gi.influence(one, tiny_metric(gan))) for scores in found.values())
    assert all(map(torch.equal, gan.generator.parameters(), own))


def test_dice_are_thrown_by_one_thread_at_a_time():
    inside, go, here = threading.Event(), threading.Event(), torch.device("cpu")

    def other() -> None:
        with dice(1, here):
            inside.set(), go.wait(5)

    with dice(0, here):
        expected = torch.rand(3)
    thread = threading.Thread(target=other)
    with dice(0, here):
        thread.start(), inside.wait(.2)
        drawn = torch.rand(3)
    go.set(), thread.join()
    assert torch.equal(drawn, expected)


class Hurdle(nn.Module):
    """Lets another thread do something while this one is within a network."""

    meanwhile = staticmethod(lambda: None)

    def forward(self, x):
        thread = threading.Thread(target=self.meanwhile)
        thread.start()
        thread.join(timeout=0.3)  # it may have to wait for this one
        Hurdle.threads = [*getattr(Hurdle, "threads", []), thread]
        return x


def test_what_a_gan_holds_while_another_thread_computes_with_it():
    """Of the state that another thread is at, whose tensors lie in the private copies meanwhile, nothing is seen."""
    gan, found = gan_of([Hurdle()]), {}
    state, z = gan.state(), gan.sample_latents(4, 0)
    copies = {"state": gan.state, "copy": lambda: gan.copy().state(), "pickle": lambda: pickle.loads(pickle.dumps(gan)).state()}
    for name, make in copies.items():
        Hurdle.meanwhile = staticmethod(lambda name=name, make=make: found.setdefault(name, make()))
        gan.generate(state.map(lambda p: 3 * p), z)
        Hurdle.meanwhile = staticmethod(lambda: None)
        [thread.join() for thread in Hurdle.threads]
    for name in copies:
        assert name in found and found[name].named().keys() == state.named().keys() and all(map(torch.equal, found[name].tensors(), state.tensors())), name


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


def test_a_run_loaded_with_other_constants_is_refused(tmp_path):
    """What training changes comes from the file; fixed statistics and frozen parameters are the network's."""
    def gan(statistic=0.0, frozen=0.0):
        layers = [nn.BatchNorm1d(4).eval(), nn.Tanh(), nn.BatchNorm1d(4), nn.Tanh()]
        layers[0].running_mean += statistic
        layers[0].weight.requires_grad_(False).add_(frozen)
        layers[2].running_mean += 5 * statistic
        return gan_of(discriminator=layers)

    run = trained(gan())
    run.save(tmp_path)
    assert all(map(torch.equal, gi.Trajectory.load(tmp_path, gan(), run.x).final.tensors(), run.final.tensors()))
    for other in (gan(statistic=0.3), gan(frozen=0.3)):
        with pytest.raises(ValueError, match="assumes that its steps can be taken again"):
            gi.Trajectory.load(tmp_path, other, run.x)


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


@pytest.mark.parametrize("change", [{"data": []}, {"gan": None}, {"stride": "1"}, {"optimizers": 3}, {"schedule": [1]}, {"rules": None}, {"steps": "12"}])
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


@pytest.mark.parametrize("layer, message", [(Counts(), "a forward pass changed 'calls' of its layer '1' (Counts)"),
                                            (NoisyInCrowds(), "assumes that its steps can be taken again")])
def test_networks_that_remember_or_draw(layer, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        trained(gan_of(discriminator=[layer]))


def test_what_a_network_remembers_elsewhere_is_found_by_taking_steps_again():
    calls = []

    class Secretive(nn.Module):
        def forward(self, x):
            calls.append(1)
            return x * (1 + 1e-3 * len(calls))

    with pytest.raises(ValueError, match="remembers something between calls|two calls on the same input under one seed differ"):
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
    with pytest.raises(ValueError, match=r"latents of shape \(4, 5\), as latent_dim=5 says, but refuses them.*: make the two agree"):
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
    ({"optimizer": 1e-2}, r"a value such as gi.SGD\(1e-3\) or gi.Adam\(2e-4\), or one of torch.optim's, but 0.01 has no init"),
    ({"optimizer": torch.optim.Adagrad([torch.zeros(1, requires_grad=True)], lr=0.1)}, "RMSprop with one.*has Adagrad: its derivative is not known"),
    ({"optimizer": torch.optim.Adam([torch.zeros(1, requires_grad=True)], amsgrad=True)}, "has amsgrad: its derivative is not known here"),
    ({"optimizer": (gi.SGD(0.1),) * 3}, "two players have two optimisers, but 3 were given"),
    ({"optimizer": gi.SGD}, "an optimiser is a value such as gi.SGD.*the class SGD was given"),
    ({"average": 1.0}, "0 or more and below 1, but average is 1.0"),
    ({"discriminator_steps": 0}, "discriminator_steps is a whole number, 1 or more, but got 0"),
    ({"discriminator_steps": 5}, r"between 1 and n = 24 distinct instances, but batch_size is 6 for 5 updates a step"),
    ({"optimizer": gi.SGD(-0.1)}, "a learning rate is 0 or more, but got -0.1"), ({"optimizer": gi.SGD([0.1] * 13)}, "for 13 steps, but the run has 12"),
    ({"optimizer": gi.SGD([0.1, 0.2])}, "for 2 steps, but the run has 12"),
])
def test_arguments_of_train(options, message):
    with pytest.raises(ValueError, match=message):
        trained(tiny_gan(), **options)


@pytest.mark.parametrize("x, message", [
    (gi.data.normal_2d(20, 5, 5), "several parts, Split: pass one of them"),
    ((torch.zeros(4, 2), torch.zeros(3)), r"n at least 1, got shape \(4, 2\), \(3,\)"), (torch.zeros(0, 2), "n at least 1"), ([], "n at least 1"),
    (pd.DataFrame(np.zeros((4, 2))), r"but got a table, DataFrame: pass its to_numpy\(\)"),
    (torch.zeros(20, 2).to_sparse(), "a dense tensor of real numbers, but got torch.sparse_coo"),
    (torch.zeros(20, 2, dtype=torch.complex64), "complex ones"), ("data.pt", "one tensor or array"), (None, "one tensor or array"),
])
def test_data_of_other_kinds(x, message):
    with pytest.raises(ValueError, match=message):
        gi.train(tiny_gan(), x, 1, 2)


class Read(torch.utils.data.Dataset):
    """Instances that are made when they are asked for; `drift` makes the same index another instance the next time."""

    def __init__(self, *columns, drift=0.0):
        self.columns, self.drift, self.asked = columns, drift, 0

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, i):
        self.asked += 1
        found = tuple(column[i] + self.drift * self.asked if column.is_floating_point() else int(column[i]) for column in self.columns)
        return found if len(found) > 1 else found[0]


@pytest.mark.parametrize("make", [lambda x: x.numpy(), Read, torch.utils.data.TensorDataset,
                                  lambda x: torch.utils.data.DataLoader(x, batch_size=5, shuffle=True),
                                  lambda x: torch.utils.data.DataLoader(Read(x)), lambda x: torch.utils.data.Subset(Read(torch.cat([x, 2 * x])), range(24))],
                         ids=["array", "data set", "TensorDataset", "loader", "loader of a data set", "subset"])
def test_data_may_come_as_a_data_set(make, tmp_path):
    run, x = trained(tiny_gan()), make(tiny_data())
    same = gi.train(tiny_gan(), x, 3, 6, gi.SGD(0.1), seed=7)
    metric = tiny_metric(run.gan)
    assert all(map(torch.equal, same.final.tensors(), run.final.tensors())) and torch.equal(gi.influence(same, metric), gi.influence(run, metric))
    assert torch.equal(gi.leave_one_out(same, metric, [1, 5]), gi.leave_one_out(run, metric, [1, 5]))
    same.save(tmp_path)
    gi.Trajectory.load(tmp_path, tiny_gan(), x)
    with pytest.raises(ValueError, match="another training set"):
        gi.Trajectory.load(tmp_path, tiny_gan(), make(2 * tiny_data()))


def test_a_data_set_that_changes_is_refused():
    with pytest.raises(ValueError, match="gives the same instance for the same index, but this data set gave another at the second asking"):
        gi.train(tiny_gan(), Read(tiny_data(), drift=1e-3), 1, 6)


class Labelled(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.embedding, self.layers = nn.Embedding(3, 2), nn.Sequential(nn.Linear(sizes[0] + 2, 6), nn.Tanh(), nn.Linear(6, sizes[1]))

    def forward(self, x, label):
        return self.layers(torch.cat([x, self.embedding(label)], 1))


@pytest.mark.parametrize("make", [lambda x, y: (x, y), Read, torch.utils.data.TensorDataset], ids=["tuple", "data set", "TensorDataset"])
def test_data_may_have_labels(make):
    torch.manual_seed(0)
    x, y = tiny_data(), torch.arange(24) % 3
    gan = gi.GAN(Labelled(3, 2).double(), Labelled(2, 1).double(), latent_dim=3)
    run = gi.train(gan, make(x, y), 3, 6, gi.SGD(0.1), seed=7)
    z, labels = gan.sample_latents(12, 1), torch.arange(12) % 3

    def metric(gan, state):
        return gan.generate(state, (z, labels)).square().mean()

    assert all(map(torch.equal, run.replay(2).tensors(), run.final.tensors())) and torch.equal(run.batch(3).x[1], y[run.schedule.indices(3)])
    slopes = sum(gi.experiments.fractional_leave_one_out(run, metric, range(6), fraction) for fraction in (1e-4, -1e-4)) / 2
    torch.testing.assert_close(gi.influence(run, metric)[:6], slopes, rtol=1e-5, atol=1e-9)
    other = gi.train(gan, make(x, y.flip(0)), 3, 6, gi.SGD(0.1), seed=7)
    assert not torch.equal(other.final.generator["layers.0.weight"], run.final.generator["layers.0.weight"]), "labels reach the networks"
    plain = trained(tiny_gan(), epochs=3)  # networks that take one input are given the instances alone
    assert all(map(torch.equal, gi.train(tiny_gan(), make(x, y), 3, 6, gi.SGD(0.1), seed=7).final.tensors(), plain.final.tensors()))


def test_a_metric_need_not_have_a_name():
    run = tiny_run()
    likelihood = tiny_metric(run.gan)

    def metric(gan, state):
        return likelihood(gan, state)

    nameless = type("Nameless", (), {"__call__": lambda self, gan, state: likelihood(gan, state)})()
    for one in (metric, nameless, lambda gan, state: likelihood(gan, state)):
        assert torch.equal(gi.influence(run, one), gi.influence(run, likelihood))
        with pytest.raises(TypeError, match="by higher_is_better = True or False which way is better"):
            gi.harmfulness(torch.ones(24), one)


@pytest.mark.parametrize("asked", [1.5, "1", True, -1, 0, 13])
def test_windows_are_whole_epochs_or_steps(asked):
    run = tiny_run()
    metric = tiny_metric(run.gan)
    with pytest.raises(ValueError, match="last_epochs must be a whole number between 1 and the run's 3 epochs, got "):
        gi.influence(run, metric, asked)
    with pytest.raises(ValueError, match="last_steps must be a whole number between 1 and the run's 12 steps, got "):
        gi.influence(run, metric, last_steps=asked)


def test_a_window_in_steps_is_that_in_epochs():
    run = tiny_run()
    metric, flat = tiny_metric(run.gan), lambda state: torch.cat([p.flatten() for p in state.tensors()])
    readings = {"influence": lambda **window: gi.influence(run, metric, **window),
                "leave_one_out": lambda **window: gi.leave_one_out(run, metric, [1, 2], **window),
                "retrain": lambda **window: flat(gi.retrain(run, [1, 2], **window)), "push": lambda **window: flat(gi.parameter_influence(run, 1, **window))}
    for name, reading in readings.items():
        assert torch.equal(reading(last_steps=8), reading(last_epochs=2)) and not torch.equal(reading(last_steps=7), reading(last_epochs=2)), name
        with pytest.raises(ValueError, match="in epochs or in steps, but last_epochs and last_steps were both given"):
            reading(last_epochs=2, last_steps=8)
    assert (gi.influence(run, metric, last_steps=1) != 0).sum() == 6, "one step draws one batch"


def test_aid_says_when_its_series_has_not_come_to_rest():
    gan, x = gi.models.lqgan(), tiny_data(20)[:, :1]
    run = gi.train(gan, x, 2, 20, gi.SGD(1e-3), "simultaneous")
    metric = gi.metrics.AverageLogLikelihood(x, gan.sample_latents(20, 0))
    with pytest.raises(FloatingPointError, match="comes to rest, but after 30 terms the last is still .*allow more iterations"):
        gi.influence(run, metric, method="aid", iterations=30)
