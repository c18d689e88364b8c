"""Counterfactual runs against one-by-one replays, and the joining rule that makes them cheap."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from textbook import textbook_run
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric, tiny_run
from gan_influence.readings import retraining
from gan_influence.readings.judging import one_instance
from gan_influence.tools.memory import in_chunks_that_fit
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


@pytest.mark.parametrize("make", [list, set, tuple, np.array, torch.tensor, pd.Index, lambda two: pd.Series(two, index=["a", "b"]), iter,
                                  lambda _: range(3, 6, 2), lambda two: list(torch.tensor(two))])
def test_a_set_may_come_in_any_collection(make):
    run = tiny_run()
    expected = replayed(run, [3, 5])
    for state in (gi.retrain(run, make([3, 5])), *gi.retrain(run, [make([3, 5]), make([3, 5])], models_at_once=1),
                  *gi.retrain(run, (make([3, 5]) for _ in range(2)), models_at_once=1)):
        assert all(torch.equal(a, b) for a, b in zip(state.tensors(), expected.tensors()))
    assert gi.leave_one_out(run, tiny_metric(run.gan), make([3, 5])).shape == (2,)


MASK = torch.arange(24) % 2


@pytest.mark.parametrize("given, error, message", [
    ([0.2, 3.9], TypeError, r"whole numbers in a flat collection.*but \[0.2, 3.9\] was passed"),
    (gi.random_scores(24).topk(3).values, TypeError, "whole numbers"),
    (pd.Series([3.0, 5.0]), TypeError, "whole numbers"),
    (5, TypeError, "but 5 was passed"), (torch.tensor(5), TypeError, r"but tensor\(5\) was passed"), ("35", TypeError, "but '35' was passed"),
    ([3, [5]], TypeError, "whole numbers"), ([2**70], TypeError, "whole numbers"),
    (gi.random_scores(24).topk(3), TypeError, r"pass \.indices"), (MASK.sort(), TypeError, r"pass \.indices"),
    *((make(mask.tolist()), TypeError, "a mask was passed: use mask.nonzero")
      for mask in (MASK, MASK.bool(), MASK.double()) for make in (list, np.array, torch.tensor)),
    ([-1], IndexError, "0..23, but -1 was given"), ([3, 24], IndexError, "0..23, but 24 was given"),
])
def test_what_is_no_set_of_instances(given, error, message):
    run = tiny_run()
    with pytest.raises(error, match=message):
        gi.retrain(run, given)
    with pytest.raises(error, match=message):
        gi.leave_one_out(run, tiny_metric(run.gan), given)


def test_instances_one_by_one_and_twice():
    run = tiny_run()
    with pytest.raises(TypeError, match=r"pass \.indices"):
        gi.retrain(run, [gi.random_scores(24).topk(3)])
    for sets in ([3, 5, 3], [[1], [3, 5, 3]]):
        with pytest.raises(ValueError, match="holds an instance once, but 3 was given 2 times"):
            gi.retrain(run, sets)
    for j in (3, np.int64(3), torch.tensor(3)):
        assert one_instance(run, j) == 3
    for j, error in ((1.5, TypeError), (True, TypeError), ([3], TypeError), (24, IndexError), (-1, IndexError)):
        with pytest.raises(error, match="instances are"):
            one_instance(run, j)


def test_a_run_outlives_what_is_done_to_its_states():
    run = tiny_run()
    before, scores = run.final.map(torch.clone), gi.random_scores(24)

    def ruthless(gan, state):
        found = gan.generate(state, gan.sample_latents(5, seed=0)).square().sum()
        for tensor in state.tensors():
            tensor.mul_(3)
        return found

    ruthless.higher_is_better = True
    truth = gi.leave_one_out(run, {"one": ruthless, "other": ruthless}, [3, 5])
    found = gi.cleanse(run, {"random": scores}, [0.1, 0.2], ruthless, ruthless)
    for state in (gi.retrain(run, []), *gi.retrain(run, [[], []]), *found.states.values()):
        for tensor in state.tensors():
            tensor.zero_()
    assert all(torch.equal(a, b) for a, b in zip(run.final.tensors(), before.tensors()))
    assert torch.equal(truth["one"], truth["other"]) and torch.equal(truth["one"], gi.leave_one_out(run, ruthless, [3, 5]))


def test_a_model_joins_where_its_instance_first_appears(monkeypatch):
    run, starts = tiny_run(n=60, epochs=1), []
    walk = type(run).walk
    monkeypatch.setattr(type(run), "walk", lambda self, state, start, stop, keep=None, dynamics=None: (
        starts.append(start) if keep is not None else None, walk(self, state, start, stop, keep, dynamics))[1])
    gi.leave_one_out(run, tiny_metric(run.gan), range(60), models_at_once=6)
    assert starts == list(range(10))


def test_an_instance_never_drawn_changes_nothing():
    run = tiny_run(n=27)
    absent = np.setdiff1d(np.arange(27), run.draws(run.window(1))[0])
    assert bool((gi.leave_one_out(run, tiny_metric(run.gan), absent, last_epochs=1) == 0).all())


def no_memory_on_a_cpu() -> RuntimeError:
    """What torch raises there, for as many bytes as no machine can address."""
    try:
        return torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), MemoryError(), no_memory_on_a_cpu()])
def test_groups_and_chunks_shrink_when_memory_runs_out(error, monkeypatch):
    run, sizes = tiny_run(), []
    run_group = retraining._run_group

    def small_machine(run, sets, start, size, *how):
        sizes.append(size)
        if size > 3:
            raise error
        return run_group(run, sets, start, size, *how)

    class Greedy(gi.metrics.AverageLogLikelihood):
        def __call__(self, gan, state):
            if self.chunk_bytes > 1000:
                raise error
            return super().__call__(gan, state)

    metric = tiny_metric(run.gan)
    expected = gi.leave_one_out(run, metric, range(24))
    monkeypatch.setattr(retraining, "_run_group", small_machine)
    greedy = Greedy(metric.x, metric.latents)
    torch.testing.assert_close(gi.leave_one_out(run, greedy, range(24)), expected, rtol=0, atol=1e-14)
    assert sizes[0] == 24 and sizes[-1] == 3 and greedy.chunk_bytes == 512


def test_other_failures_are_not_taken_for_a_lack_of_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(retraining, "_run_group", lambda *_: calls.append(1) or _failing_metric(None, None))
    with pytest.raises(RuntimeError, match="no metric today"):
        gi.leave_one_out(run := tiny_run(), tiny_metric(run.gan), range(24))
    assert len(calls) == 1
    metric = SimpleNamespace(chunk=100)
    with pytest.raises(RuntimeError, match="no metric today"):
        in_chunks_that_fit(metric, lambda: _failing_metric(None, None))
    assert metric.chunk == 100


def fresh_latents(gan, state):
    return gan.generate(state, torch.randn(50, 3, dtype=gan.dtype)).sum()


@pytest.mark.parametrize("metric, error, message", [
    ({}, ValueError, "one metric or more, but the dict of metrics is empty"),
    (gi.metrics.AverageLogLikelihood, TypeError, "but the class AverageLogLikelihood was given: pass for instance"),
    ([fresh_latents], TypeError, "but a list was given"), (tiny_gan(), TypeError, "but a GAN was given"), (None, TypeError, "but a NoneType was given"),
    (lambda gan, state: 0.3, TypeError, "a real number as a tensor, but <lambda> returned 0.3: compute it with torch"),
    (lambda gan, state: None, TypeError, "but <lambda> returned None"), (lambda gan, state: np.float64(0.3), TypeError, r"returned np.float64\(0.3\)"),
    (lambda gan, state: torch.tensor(1j), TypeError, r"returned tensor\(0.\+1.j\)"),
    (lambda gan, state: torch.ones(2), FloatingPointError, r"<lambda> has shape \(2,\): take its mean or sum"),
    (lambda gan, state: torch.tensor(torch.inf), FloatingPointError, r"<lambda> is inf at the end of the run \(step 12\)"),
    (fresh_latents, ValueError, r"of the state alone, but fresh_latents was .* and then .* \(step 12\): give it the same latents every time"),
])
def test_metrics_that_cannot_judge(metric, error, message):
    run = tiny_run()
    with pytest.raises(error, match=message):
        gi.leave_one_out(run, metric, [1])
    with pytest.raises(error, match=message):
        gi.influence(run, metric)
    if callable(metric) and not isinstance(metric, type):
        metric.higher_is_better = True
    with pytest.raises(error, match=message):
        gi.cleanse(run, {"random": gi.random_scores(24)}, [0.1], metric, metric)


def test_a_run_and_its_metric_in_the_wrong_order():
    run = tiny_run()
    with pytest.raises(TypeError, match="a run first and then a metric, but they came the other way round"):
        gi.leave_one_out(tiny_metric(run.gan), run, [1])


def test_models_at_once_is_a_number_of_models():
    run = tiny_run()
    for number in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"models_at_once is a whole number, 1 or more, but got {number}"):
            gi.retrain(run, [[1], [2]], models_at_once=number)


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
    with ThreadPoolExecutor(1) as executor, pytest.raises(TypeError, match="whole numbers in a flat collection"):
        gi.leave_one_out(run, tiny_metric(run.gan), [[3], [5, 7]], executor=executor)


class Pause(nn.Module):
    def forward(self, x):
        time.sleep(1e-4)  # another thread's turn, in the middle of a network
        return x.tanh()


def test_threads_may_share_a_metric_that_computes_with_a_gan_of_its_own():
    run = tiny_run(activation=Pause, epochs=1)
    outer = tiny_gan(activation=Pause)
    z = outer.sample_latents(20, seed=1)

    def spread_of_samples(gan, state):
        return outer.generate(state, z).var()

    with ThreadPoolExecutor(4) as executor:
        spread = gi.leave_one_out(run, spread_of_samples, range(24), models_at_once=3, executor=executor)
    torch.testing.assert_close(spread, gi.leave_one_out(run, spread_of_samples, range(24), models_at_once=3), rtol=0, atol=1e-14)


def _failing_metric(gan, state):
    raise RuntimeError("no metric today")
