"""Runs as values: exact replay, cost known beforehand, and files that are whole or refused."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric, tiny_run
from gan_influence.tools import storage
from gan_influence.training.keeping import default_stride
from gan_influence.training.schedule import Schedule


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.tensors(), b.tensors(), strict=True))


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("stride", [1, 3, 5, 100])
def test_replay_is_bit_for_bit(order, stride, device):
    run, dense = tiny_run(order, epochs=4, device=device, stride=stride), tiny_run(order, epochs=4, device=device, stride=1)
    assert equal(run.replay(), run.final) and equal(run.replay(5), run.final)
    assert all(equal(run.state(t), dense.state(t)) for t in range(run.steps + 1))
    assert sorted(run.states) == [*range(0, run.steps, stride), run.steps]


def test_the_schedule_is_a_pure_function_of_seed_and_step():
    schedule = Schedule(n=20, batch_size=6, epochs=3, latent_dim=4, shared=False, seed=9)
    again = Schedule(n=20, batch_size=6, epochs=3, latent_dim=4, shared=False, seed=9)
    for t in reversed(range(9)):  # asked in another order
        assert torch.equal(again.indices(t), schedule.indices(t))
        assert all(torch.equal(a, b) for a, b in zip(again.latents(t), schedule.latents(t)))
    assert not torch.equal(*schedule.latents(0))  # each player draws its own
    assert Schedule(20, 6, 3, 4, True, 9).latents(0)[1] is None
    assert not torch.equal(Schedule(20, 6, 3, 4, False, 10).indices(0), schedule.indices(0))
    for epoch in range(3):  # an epoch never repeats an instance
        assert len(set(torch.cat([schedule.indices(3 * epoch + i) for i in range(3)]).tolist())) == 18


def test_cost_is_known_before_training(monkeypatch):
    gan = tiny_gan()
    for stride in (None, 1, 5):
        run = gi.train(gan, tiny_data(), 4, 6, gi.SGD(0.1), stride=stride)
        assert gi.trajectory_bytes(gan, 24, 4, 6, stride=stride) == run.nbytes
    assert gi.trajectory_bytes(gi.models.fcgan(), 10_000, 50) < 20e6
    gan = gi.models.dcgan(width=2)
    run = gi.train(gan, torch.zeros(40, 1, 28, 28), 5, 2, gi.SGD(0.1))
    assert gi.trajectory_bytes(gan, 40, 5, 2) == run.nbytes and set(run.states) >= set(range(80, 101)), "convolutions keep the last epoch"
    monkeypatch.setattr("gan_influence.training.keeping.DENSE_BYTES", run.initial.nbytes)
    assert gi.trajectory_bytes(gan, 40, 5, 2) < run.nbytes, "but not at any price"
    assert default_stride(5000, 100) == 25 and default_stride(40, 10) == 2 and default_stride(7, 7) == 1


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_save_and_load(order, tmp_path, device):
    run = tiny_run(order, device=device, learning_rate=[0.1] * 6 + [0.05] * 6)
    run.save(tmp_path / "a" / "run")
    assert sorted(os.listdir(tmp_path / "a" / "run")) == ["states.safetensors", "trajectory.json"]
    again = gi.Trajectory.load(tmp_path / "a" / "run", tiny_gan(device=device), run.x)
    assert sorted(again.states) == sorted(run.states) and all(equal(again.states[t], run.states[t]) for t in run.states)
    assert equal(again.replay(), run.final)
    header = json.loads((tmp_path / "a" / "run" / "trajectory.json").read_text())
    assert header["versions"]["torch"] == torch.__version__ and header["schedule"]["seed"] == 7


def recording(order, generator_latents=True):
    gan, x = tiny_gan(), tiny_data()
    indices = np.random.default_rng(0).integers(0, 24, (10, 6))
    latents, own = np.random.default_rng(1).standard_normal((2, 10, 6, 3))
    options = {"order": order, "generator_latents": own if generator_latents else None}
    return gan, x, indices, latents, options


@pytest.mark.parametrize("order", ["simultaneous", "alternating", "generator first"])
@pytest.mark.parametrize("own", [True, False])
def test_recordings_are_replayed_saved_and_checked(order, own, tmp_path):
    gan, x, indices, latents, options = recording(order, own)
    run = gi.Trajectory.from_recording(gan, x, indices, latents, gi.SGD(0.1), **options, verify=False)
    assert equal(run.initial, gan.state())
    run.save(tmp_path / "run")
    again = gi.Trajectory.load(tmp_path / "run", gan, x)
    assert equal(again.final, run.final) and equal(again.replay(3), run.final)
    same = gi.Trajectory.from_recording(gan, x, indices, latents, gi.SGD(0.1), **options, final=run.final)
    assert equal(same.final, run.final)
    started = gi.Trajectory.from_recording(tiny_gan(seed=8), x, indices, latents, gi.SGD(0.1), **options, initial=gan.state(), final=run.final)
    assert equal(started.final, run.final)
    modules = tiny_gan(seed=9)
    modules.load(run.final)
    ends = modules.generator.state_dict(), modules.discriminator.state_dict()
    same = gi.Trajectory.from_recording(gan, x, list(indices), list(latents), gi.SGD(0.1), **options, final=ends)
    assert equal(same.final, run.final)
    with pytest.raises(ValueError, match="no final was given: pass final=.generator.state_dict.*or verify=False"):
        gi.Trajectory.from_recording(gan, x, indices, latents, gi.SGD(0.1), **options)


@pytest.mark.parametrize("wrong", [{"order": "simultaneous"}, {"optimizer": gi.SGD(0.1001)}, {"initial": tiny_gan(seed=8).state()},
                                   {"gan": tiny_gan(loss="minimax")}, {"gan": tiny_gan(weight_decay=1e-3)}, {"generator_latents": None}])
def test_a_recording_that_ends_elsewhere_is_refused(wrong):
    gan, x, indices, latents, options = recording("alternating")
    arguments = {"gan": gan, "x": x, "indices": indices, "latents": latents, "optimizer": gi.SGD(0.1), **options}
    final = gi.Trajectory.from_recording(**arguments, verify=False).final
    with pytest.raises(ValueError, match="away from `final`.*order, the learning rate, the latents"):
        gi.Trajectory.from_recording(**arguments | wrong, final=final)


MEMORIES = {"adam": lambda lr=0.02: gi.Adam(lr, betas=(0.5, 0.9)), "rmsprop": lambda lr=0.02: gi.RMSprop(lr),
            "momentum": lambda lr=0.2: gi.SGD(lr, momentum=0.9)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MEMORIES)
def test_a_wrong_recording_is_refused_whatever_an_optimiser_remembers(name, dtype):
    """Memories, and what counts steps, move far and are no part of the comparison; parameters are."""
    make, gan, x = MEMORIES[name], tiny_gan(dtype=dtype), tiny_data(dtype=dtype)
    _, _, indices, latents, _ = recording("alternating")
    arguments = {"gan": gan, "x": x, "indices": indices, "latents": latents, "optimizer": make()}
    final = gi.Trajectory.from_recording(**arguments, verify=False).final
    assert equal(gi.Trajectory.from_recording(**arguments, final=final).final, final)
    for wrong in ({"optimizer": make(10 * make().generator)}, {"gan": tiny_gan(dtype=dtype, loss="hinge")}, {"order": "simultaneous"},
                  {"order": "generator first"}, {"optimizer": gi.SGD(0.1)}, {"initial": final}):
        for end in (final, (final.generator, final.discriminator)):
            with pytest.raises(ValueError, match="away from `final` in .*having moved"):
                gi.Trajectory.from_recording(**arguments | wrong, final=end)


def test_modules_that_hold_the_end_are_no_beginning():
    """Imported after the loop, with the very modules that it trained, the replay starts from their end and is refused."""
    gan, x, indices, latents, options = recording("alternating")
    final = gi.Trajectory.from_recording(gan, x, indices, latents, gi.SGD(0.1), **options, verify=False).final
    initial = gan.state()
    gan.load(final)
    late = gi.GAN(gan.generator, gan.discriminator, latent_dim=3)
    ends = gan.generator.state_dict(), gan.discriminator.state_dict()
    with pytest.raises(ValueError, match="away from `final`.*or the initial state is not the one that was used"):
        gi.Trajectory.from_recording(late, x, indices, latents, gi.SGD(0.1), **options, final=ends)
    run = gi.Trajectory.from_recording(late, x, indices, latents, gi.SGD(0.1), **options, initial=initial, final=ends)
    assert equal(run.final, final) and equal(run.initial, initial)


def batches(sizes, epochs, n=24, seed=0):
    order = np.random.default_rng(seed)
    return [part for _ in range(epochs) for part in np.split(order.permutation(n)[:sum(sizes)], np.cumsum(sizes)[:-1])]


REPLACED = list(np.random.default_rng(1).integers(0, 24, (12, 6)))


@pytest.mark.parametrize("drawn, starts", [
    (batches([6] * 4, 3), [0, 4, 8]), (batches([7, 7, 7, 3], 3), [0, 4, 8]), (batches([7, 7, 7], 3), [0, 3, 6]), (batches([24], 4), [0, 1, 2, 3]),
    ([batch for batch in batches([6] * 4, 2) for _ in range(5)], [0, 20]),  # five updates of the discriminator by the same batch
    ([batch for batch in batches([7, 7, 7, 3], 2) for _ in range(5)], [0, 20]), (REPLACED, [0, 4, 8]), (batches([24], 1), [0]), (batches([6, 6], 1), [0]),
], ids=["even", "ragged", "drop_last", "full batch", "five steps a batch", "five steps a ragged batch", "with replacement", "one epoch", "less than one"])
def test_an_epoch_is_one_pass_over_the_data(drawn, starts, tmp_path):
    gan, latents = tiny_gan(), [np.random.default_rng(t).standard_normal((len(rows), 3)) for t, rows in enumerate(drawn)]
    run = gi.Trajectory.from_recording(gan, tiny_data(), drawn, latents, gi.SGD(0.1), verify=False)
    assert list(run.schedule.epoch_starts()) == starts and [run.window(k + 1) for k in range(len(starts))] == starts[::-1]
    assert f"{len(drawn)} step{'s' * (len(drawn) > 1)} = {len(starts)} epoch{'s' * (len(starts) > 1)} of" in repr(run)
    metric = tiny_metric(gan)
    for k in (1, None):
        scores, within = gi.influence(run, metric, last_epochs=k), np.unique(run.draws(run.window(k))[0])
        outside = np.setdiff1d(np.arange(24), within)
        assert (scores[within] != 0).all() and (scores[outside] == 0).all(), "whoever was drawn in the window has an influence, and nobody else"
    j, keep = int(drawn[-1][0]), torch.ones(24, dtype=torch.float64)
    keep[j] = 0
    *_, without = run.walk(run.state(starts[-1]), starts[-1], run.steps, keep)
    assert float(gi.leave_one_out(run, metric, [j], last_epochs=1)) == pytest.approx(float(metric(gan, without) - metric(gan, run.final)), rel=1e-9)
    run.save(tmp_path)
    again = gi.Trajectory.load(tmp_path, gan, run.x)
    assert list(again.schedule.epoch_starts()) == starts and equal(again.replay(1), run.final)
    assert torch.equal(gi.influence(again, metric, last_epochs=1), gi.influence(run, metric, last_epochs=1))


@pytest.mark.parametrize("options", [{}, {"discriminator_steps": 2}, {"average": 0.9}])
def test_epochs_of_a_trained_run(options):
    run = gi.train(tiny_gan(), tiny_data(26), 3, 6, gi.Adam(0.01), seed=7, **options)
    updates = options.get("discriminator_steps", 1)
    assert run.steps == 12 // updates and run.window(1) == 8 // updates
    for k in range(3):  # no instance comes twice in an epoch, and the rest sits out
        rows = run.draws(run.window(k + 1))[0]
        assert len(rows) == 24 * (k + 1) and np.bincount(rows).max() <= k + 1




def test_recordings_with_wrong_shapes_are_refused():
    gan, x, indices, latents, _ = recording("alternating")
    for arguments, message in [((indices + 10, latents), r"indices must lie in 0\.\.23.*got 10\.\.33"),
                               ((indices[0], latents), r"\(T, B\).*got rows of shape \(\)"),
                               ((indices / 2, latents), r"whole numbers: .*got rows of shape \(6,\), torch.float64"), (([], latents), "got no step"),
                               (([[0, 1], [2, "a"]], latents), "lists of T batches of them, but something else was given"),
                               ((indices, latents[:5]), r"latents must be \(T, B, latent_dim\), \(6, 3\) in a step.*got 5 batches for 10 steps"),
                               ((indices, latents[..., :2]), r"\(6, 3\) in a step, to match indices; got \(6, 2\)"),
                               ((list(indices), [*latents[:9], latents[9, :4]]), r"to match indices; got \(4, 3\)")]:
        with pytest.raises(ValueError, match=message):
            gi.Trajectory.from_recording(gan, x, *arguments, gi.SGD(0.1), verify=False)


def test_another_data_set_or_gan_is_refused(tmp_path):
    run = tiny_run()
    run.save(tmp_path)
    other = run.x.clone()
    other[3, 1] += 1e-12
    with pytest.raises(ValueError, match="recorded with another training set.*fingerprint.*pass the one that was trained"):
        gi.Trajectory.load(tmp_path, run.gan, other)
    with pytest.raises(ValueError, match="recorded with another GAN.*weight_decay 0.0, given was 0.1"):
        gi.Trajectory.load(tmp_path, tiny_gan(weight_decay=0.1), run.x)


@pytest.mark.parametrize("file", ["states.safetensors", "trajectory.json"])
@pytest.mark.parametrize("damage", ["truncate", "foreign", "remove"])
def test_damaged_files_are_refused(file, damage, tmp_path):
    run = tiny_run()
    run.save(tmp_path)
    path = tmp_path / file
    {"truncate": lambda: path.write_bytes(path.read_bytes()[:-100]), "foreign": lambda: path.write_bytes(b"\x93NUMPY" * 40), "remove": path.unlink}[damage]()
    with pytest.raises(ValueError, match="does not hold a whole trajectory.*record the run again"):
        gi.Trajectory.load(tmp_path, run.gan, run.x)


def test_a_file_of_another_format_or_with_wrong_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    run = tiny_run()
    run.save(tmp_path)
    header, tensors = json.loads((tmp_path / "trajectory.json").read_text()), load_file(tmp_path / "states.safetensors")
    for change, drop, message in [({"format": 99}, None, "format 99, this version reads 3"),
                                  ({}, "4/generator.0.weight", "state 4 should hold generator.0.weight .* found nothing")]:
        kept = {name: p for name, p in tensors.items() if name != drop}
        change["checksum"] = storage._checksum(kept)
        save_file(kept, tmp_path / "states.safetensors", metadata={"header": json.dumps(header | change)})
        with pytest.raises(ValueError, match=message):
            gi.Trajectory.load(tmp_path, run.gan, run.x)


@pytest.mark.parametrize("killed_at", ["save_file", "replace"])
def test_a_killed_save_leaves_the_old_file_whole(killed_at, tmp_path):
    run = tiny_run()
    run.save(tmp_path / "run")
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from conftest import tiny_run
        import gan_influence.tools.storage as module
        def die(*args, **kwargs):
            if {killed_at!r} == "save_file":
                open(args[1], "wb").write(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        setattr(module if {killed_at!r} == "save_file" else module.os, {killed_at!r}, die)
        tiny_run(epochs=5).save({str(tmp_path / "run")!r})
    """)
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == -signal.SIGKILL
    again = gi.Trajectory.load(tmp_path / "run", run.gan, run.x)
    assert equal(again.final, run.final)
    tiny_run(epochs=5).save(tmp_path / "run")
    assert gi.Trajectory.load(tmp_path / "run", run.gan, run.x).steps == 20
    assert sorted(os.listdir(tmp_path / "run")) == ["states.safetensors", "trajectory.json"]


@pytest.mark.parametrize("dense", [1, 2, 4])
def test_dense_epochs_change_memory_and_nothing_else(dense, tmp_path):
    sparse = tiny_run(epochs=4, stride=3)
    run = gi.train(sparse.gan, sparse.x, 4, 6, gi.SGD(0.1), seed=7, stride=3, dense_epochs=dense)
    assert set(run.states) == set(sparse.states) | set(range(16 - 4 * dense, 17))
    assert run.nbytes == gi.trajectory_bytes(run.gan, run.n, 4, 6, stride=3, dense_epochs=dense)
    metric = tiny_metric(run.gan)
    assert torch.equal(gi.influence(run, metric, last_epochs=2), gi.influence(sparse, metric, last_epochs=2))
    run.save(tmp_path)
    again = gi.Trajectory.load(tmp_path, run.gan, run.x)
    assert set(again.states) == set(run.states) and torch.equal(gi.influence(again, metric), gi.influence(run, metric))


def test_an_influence_over_dense_epochs_replays_nothing(monkeypatch):
    run = gi.train(tiny_run(epochs=1).gan, tiny_run(epochs=1).x, 4, 6, gi.SGD(0.1), seed=7, stride=3, dense_epochs=2)
    monkeypatch.setattr(sys.modules["gan_influence.training.trajectory"], "GRAPH_BYTES", 0)  # as if two steps' graphs did not fit
    steps, step = [], gi.Dynamics.step
    monkeypatch.setattr(gi.Dynamics, "step", lambda self, *arguments: (steps.append(torch.is_grad_enabled()), step(self, *arguments))[1])
    monkeypatch.setattr(sys.modules["gan_influence.readings.influence"], "check_derivative", lambda run: None)
    gi.influence(run, tiny_metric(run.gan), last_epochs=2)
    assert all(steps), "replayed steps run without gradients"
    gi.influence(run, tiny_metric(run.gan), last_epochs=4)
    assert not all(steps)
