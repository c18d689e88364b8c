"""Counterfactual runs against one-by-one replays, and the joining rule that makes them cheap."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from textbook import textbook_run
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric, tiny_run
from gan_influence.readings import retraining
from gan_influence.training.trajectory import last


def replayed(run, removed, start=0):
    keep = torch.ones(run.n, dtype=run.x.dtype, device=run.x.device)
    keep[removed] = 0
    return last(run.walk(run.state(start), start, run.steps, keep))


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("last_epochs", [1, 2, None])
@pytest.mark.parametrize("models_at_once", [1, 4, 50])
def test_leave_one_out_equals_one_by_one_replays(order, last_epochs, models_at_once, device):
    run = tiny_run(order, n=27, activation=nn.ReLU, device=device, weight_decay=0.01)
    metric, start = tiny_metric(run.gan), run.window(last_epochs)
    instances = [5, 0, 26, 5, 13, 1, 2, 3, 4]
    truth = gi.leave_one_out(run, metric, instances, last_epochs, models_at_once)
    before = metric(run.gan, run.final).detach()
    expected = torch.stack([metric(run.gan, replayed(run, j, start)).detach() - before for j in instances]).cpu()
    torch.testing.assert_close(truth, expected, rtol=0, atol=1e-14)
    assert truth.abs().max() > 1e-6


def test_leave_one_out_equals_the_textbook():
    run = tiny_run("alternating")
    metric, weights = tiny_metric(run.gan), torch.ones(run.n, dtype=torch.float64)
    base = metric(run.gan, gi.State(*textbook_run(run, weights)))
    for j in (0, 11):
        without = weights.clone()
        without[j] = 0
        expected = metric(run.gan, gi.State(*textbook_run(run, without))) - base
        assert float(gi.leave_one_out(run, metric, [j])) == pytest.approx(float(expected.detach()), abs=1e-13)


def test_nothing_removed_is_the_recorded_run_bit_for_bit():
    run = tiny_run()
    for unchanged in (gi.retrain(run, []), gi.retrain(run, [], last_epochs=1), replayed(run, [])):
        assert all(torch.equal(a, b) for a, b in zip(unchanged.tensors(), run.final.tensors()))


@pytest.mark.parametrize("compile", [False, True])
def test_sets_are_removed_together(compile):
    run = tiny_run("simultaneous", n=27)
    sets = [[0, 5, 9], [3], [], [1, 2, 3, 4, 5, 6, 7], torch.arange(27)]
    for one, state in zip(sets, gi.retrain(run, sets, last_epochs=2, compile=compile), strict=True):
        expected = replayed(run, one, run.window(2))
        for a, b in zip(state.tensors(), expected.tensors()):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        alone = gi.retrain(run, one, last_epochs=2)
        for a, b in zip(alone.tensors(), expected.tensors()):
            assert torch.equal(a, b)


@pytest.mark.parametrize("one", [[3, 5], {3, 5}, (3, 5), range(3, 6, 2), np.array([3, 5]), torch.tensor([3, 5])])
def test_a_set_may_come_in_any_collection(one):
    run = tiny_run()
    expected = replayed(run, [3, 5])
    for state in (gi.retrain(run, one), *gi.retrain(run, [one, one], models_at_once=1)):
        assert all(torch.equal(a, b) for a, b in zip(state.tensors(), expected.tensors()))


def test_a_model_joins_where_its_instance_first_appears(monkeypatch):
    run, starts = tiny_run(n=60, epochs=1), []
    walk = type(run).walk
    monkeypatch.setattr(type(run), "walk", lambda self, state, start, stop, keep=None, dynamics=None: (
        starts.append(start) if keep is not None else None, walk(self, state, start, stop, keep, dynamics))[1])
    gi.leave_one_out(run, tiny_metric(run.gan), range(60), models_at_once=6)
    assert starts == list(range(10))


def test_an_instance_never_drawn_changes_nothing():
    run = tiny_run(n=27)
    absent = np.setdiff1d(np.arange(27), run.draws(run.window(1)))
    assert bool((gi.leave_one_out(run, tiny_metric(run.gan), absent, last_epochs=1) == 0).all())


def test_groups_shrink_when_memory_runs_out(monkeypatch):
    run, sizes = tiny_run(), []
    run_group = retraining._run_group

    def small_machine(run, sets, start, size, *how):
        sizes.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("out of memory")
        return run_group(run, sets, start, size, *how)

    metric = tiny_metric(run.gan)
    expected = gi.leave_one_out(run, metric, range(24))
    monkeypatch.setattr(retraining, "_run_group", small_machine)
    torch.testing.assert_close(gi.leave_one_out(run, metric, range(24)), expected, rtol=0, atol=1e-14)
    assert sizes[0] == 24 and sizes[-1] == 3


def test_many_metrics_in_one_pass():
    run = tiny_run()
    metrics = {"all": tiny_metric(run.gan), "loss": gi.metrics.DiscriminatorLoss(tiny_data(5), run.gan.sample_latents(5, seed=0))}
    truth = gi.leave_one_out(run, metrics, [1, 2])
    assert torch.equal(truth["loss"], gi.leave_one_out(run, metrics["loss"], [1, 2])) and list(truth) == ["all", "loss"]


def test_single_precision_keeps_its_type():
    run = gi.train(tiny_gan(dtype=torch.float32), tiny_data(dtype=torch.float32), 2, 6, gi.SGD(0.1))
    assert gi.retrain(run, [[1], [2]])[0].generator["0.weight"].dtype == torch.float32
    assert gi.leave_one_out(run, tiny_metric(run.gan), [1]).dtype == torch.float64


@pytest.mark.parametrize("models_at_once", [None, 5])
def test_leave_one_out_on_an_executor_equals_the_plain_call(models_at_once, tmp_path):
    run, instances = tiny_run(n=27), [5, 0, 26, 5, *range(10, 20)]
    metrics = {"all": tiny_metric(run.gan), "loss": gi.metrics.DiscriminatorLoss(tiny_data(5), run.gan.sample_latents(5, seed=0))}
    plain = gi.leave_one_out(run, metrics, instances, last_epochs=2, models_at_once=models_at_once)
    with ThreadPoolExecutor(2) as executor:
        spread = gi.leave_one_out(run, metrics, instances, 2, models_at_once, executor=executor, folder=tmp_path / "run")
        alone = gi.leave_one_out(run, metrics["all"], instances, 2, models_at_once, executor=executor)
        assert len(gi.leave_one_out(run, metrics["all"], [], executor=executor)) == 0
    for name in metrics:
        torch.testing.assert_close(spread[name], plain[name], rtol=0, atol=1e-14)
    assert torch.equal(alone, spread["all"]) and plain["all"].abs().max() > 1e-6 and (tmp_path / "run" / "states.safetensors").exists()


def test_leave_one_out_in_other_processes():
    run = gi.train(gi.models.fcgan(), gi.data.normal_2d(60, 20, 1).train, epochs=2, batch_size=20)
    metric = gi.metrics.AverageLogLikelihood(gi.data.normal_2d(60, 20, 1).valid, run.gan.sample_latents(20, seed=1))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        spread = gi.leave_one_out(run, metric, range(7), models_at_once=4, executor=executor)
    assert torch.equal(spread, gi.leave_one_out(run, metric, range(7), models_at_once=4))


def test_a_failing_shard_is_heard_of():
    run = tiny_run()
    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match="no metric today"):
        gi.leave_one_out(run, _failing_metric, [1, 2], executor=executor)


def _failing_metric(gan, state):
    raise RuntimeError("no metric today")
