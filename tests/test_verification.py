"""What `verify` says of scores that are right, wrong, and lost in rounding; the score of sets and smoothness against their definitions."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric
from gan_influence.readings import verification
from gan_influence.training.trajectory import last


@cache
def example(activation=nn.Tanh, dtype=torch.float64):
    run = gi.train(tiny_gan(activation, dtype=dtype), tiny_data(240, dtype=dtype), 3, batch_size=20, optimizer=gi.SGD(0.05), seed=7)
    metric = tiny_metric(run.gan, 60)
    return run, metric, gi.influence(run, metric, 2)


def test_right_scores_are_to_be_acted_on():
    run, metric, scores = example()
    found = gi.verify(run, metric, scores, 2)
    assert found.trustworthy and found.verdict == ("act on these scores: alone, removing 10 of the 10 predicted most harmful improves average "
                                                   "log-likelihood, 80 % were asked for")
    assert min(found.kendall_tau, found.slope, found.pearson, found.tau_ceiling) > 0.9 and found.precision_worst == found.precision_best == 1
    assert found.intervals["precision_worst"] == pytest.approx(stats.beta.ppf([0.025, 1], [10, 11], [1, 1]) ** [1, 0])
    effects = np.abs(found.frame().leave_one_out)
    assert 1e-16 < found.noise_floor < 1e-13 < effects.median() / 1e4
    assert found.verdict in str(found) and "kendall_tau" in str(found)


def test_wrong_signs_are_told_by_the_ends():
    run, metric, scores = example()
    found = gi.verify(run, metric, -scores, 2)
    assert not found.trustworthy and found.precision_worst == found.precision_best == 0 and found.kendall_tau < -0.9
    assert found.verdict.startswith("do not act on these scores: alone, removing 0 of the 10 predicted most harmful")


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_scores_are_not_to_be_acted_on(seed):
    run, metric, scores = example()
    found = gi.verify(run, metric, scores[torch.randperm(run.n, generator=torch.Generator().manual_seed(seed))], 2, seed=seed)
    low, high = found.intervals["kendall_tau"]
    assert not found.trustworthy and low < 0.3 and high - low > 0.3


def test_an_order_that_is_chance_is_told_by_tau_although_every_removal_helps(monkeypatch):
    """All that is removed weakens the discriminator, which may suit a metric whatever the scores say."""
    run, metric, _ = example()
    order = torch.arange(240).double() + 1

    def measured(run, metric, instances, **window):
        return torch.tensor([np.random.default_rng(int(j)).random() + 1 for j in instances], dtype=torch.float64)

    monkeypatch.setattr(verification, "leave_one_out", measured)
    found = gi.verify(run, metric, order, 1)
    low, high = found.intervals["kendall_tau"]
    assert not found.trustworthy and found.precision_worst == 1 and low < 0
    assert f"over 20 random instances Kendall's tau is {found.kendall_tau:.2f}, and its interval, {low:.2f} to {high:.2f}, does not" in found.verdict


def test_probes_and_shares_against_brute_force():
    run, metric, scores = example(nn.ReLU)
    scores = scores + 2 * scores.std() * torch.randn(run.n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # so that some are wrong
    found = gi.verify(run, metric, scores, 2, probes=48)
    table, before, start = found.frame(), metric(run.gan, run.final).item(), run.window(2)
    assert table.group.value_counts().to_dict() == {"random": 24, "worst": 12, "best": 12}
    for group, largest in (("worst", True), ("best", False)):
        assert table.instance[table.group == group].tolist() == scores.topk(12, largest=largest).indices.tolist()
    keep = torch.ones(run.n, dtype=torch.float64)
    for row in table[::3].itertuples():
        keep[row.instance] = 0
        true = metric(run.gan, last(run.walk(run.state(start), start, run.steps, keep))).item() - before
        keep[row.instance] = 1
        assert row.leave_one_out == pytest.approx(true, abs=1e-14) and row.influence == scores[row.instance]
    random, truth = table[table.group == "random"], table.leave_one_out
    assert found.kendall_tau == pytest.approx(stats.kendalltau(random.influence, random.leave_one_out).statistic)
    assert found.slope == pytest.approx(np.polyfit(random.leave_one_out, random.influence, 1)[0])
    shares = [(truth[table.group == "worst"] > 0).mean(), (truth[table.group == "best"] < 0).mean()]
    assert [found.precision_worst, found.precision_best] == pytest.approx(shares) and 0 < min(shares) < 1
    low, high = found.intervals["kendall_tau"]
    assert low < found.kendall_tau < high


def test_lower_may_be_better():
    run, metric, scores = example(nn.ReLU)

    def distance(gan, state):
        return -metric(gan, state)

    distance.higher_is_better = False
    found, same = gi.verify(run, distance, -scores, 2, probes=20), gi.verify(run, metric, scores, 2, probes=20)
    table = found.frame()
    assert (table.influence[table.group == "worst"] < 0).all() and (table.influence[table.group == "best"] > 0).all()
    assert (found.precision_worst, found.precision_best, found.kendall_tau, found.trustworthy) == (
        same.precision_worst, same.precision_best, pytest.approx(same.kendall_tau), same.trustworthy)
    assert not gi.verify(run, distance, scores, 2, probes=20).trustworthy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_start_is_moved_by_one_rounding_unit(dtype):
    run, eps = example(dtype=dtype)[0], torch.finfo(dtype).eps
    start = run.window(2)
    before, after = run.state(start), verification.moved(run, start, seed=0).state(start)
    for a, b in zip(before.tensors(), after.tensors()):
        apart = ((b.double() - a.double()) / a.double()).abs()
        assert (a != b).all() and (apart <= 2 * eps).all()
    assert (after.generator["0.weight"] > before.generator["0.weight"]).float().mean() == pytest.approx(0.5, abs=0.3)
    assert not torch.equal(verification.moved(run, start, seed=1).state(start).generator["0.weight"], after.generator["0.weight"])


def test_a_moved_start_moves_the_end_and_not_more():
    run, start = example()[0], example()[0].window(2)
    same = run.starting(start, run.state(start))
    assert all(torch.equal(a, b) for a, b in zip(same.final.tensors(), run.final.tensors()))
    gaps = [float((a - b).abs().max()) for a, b in zip(verification.moved(run, start, 0).final.tensors(), run.final.tensors())]
    assert 0 < max(gaps) < 1e-12


def test_float32_has_the_higher_floor():
    floors = [gi.verify(*example(dtype=dtype), 2, probes=16).noise_floor for dtype in (torch.float32, torch.float64)]
    assert floors[0] > 1e5 * floors[1]


def test_what_rounding_does_is_no_harm(monkeypatch):
    """Two leave-one-outs of one instance share nothing, as after chaos."""
    run, metric, scores = example()
    measure = verification.leave_one_out

    def chaos(one, metric, instances, **window):
        return measure(one, metric, instances, **window) + (one is not run) * torch.randn(len(instances), generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(verification, "leave_one_out", chaos)
    found = gi.verify(run, metric, scores, 2)
    truth = found.frame()[:10]
    assert found.noise_floor == pytest.approx(np.sqrt(((truth.leave_one_out - truth.repeated) ** 2).mean()))
    assert found.tau_ceiling == pytest.approx(stats.kendalltau(truth.leave_one_out, truth.repeated).statistic)
    assert not found.trustworthy and f"by more than the {found.noise_floor:.2g} of rounding" in found.verdict
    assert found.verdict.endswith(f"a repetition that differs by rounding alone agrees with tau {found.tau_ceiling:.2f} only")


def test_only_what_the_window_draws_is_probed():
    run, metric, _ = example()
    found = gi.verify(run, metric, gi.influence(run, metric, last_steps=3), last_steps=3)
    drawn = set(run.draws(run.steps - 3)[0].tolist())
    assert len(drawn) == 60 and {row["instance"] for row in found.rows} <= drawn


def test_what_is_removed_already_stays_so():
    run, metric, _ = example()
    gone = [3, 5, 77]
    scores = gi.influence(run, metric, 2, remove=gone)
    found = gi.verify(run, metric, scores, 2, probes=16, remove=gone)
    row, base = found.rows[-1], metric(run.gan, gi.retrain(run, gone, 2))
    assert row["leave_one_out"] == pytest.approx((metric(run.gan, gi.retrain(run, [*gone, row["instance"]], 2)) - base).item(), abs=1e-14)
    assert found.trustworthy and not {row["instance"] for row in found.rows} & set(gone)


def test_nothing_predicted_to_hurt_is_nothing_to_act_on():
    run, metric, scores = example()
    found = gi.verify(run, metric, -scores.abs() - 1, 2)
    assert not found.trustworthy and np.isnan(found.precision_worst) and "0 of 240 instances to be harmful" in found.verdict


def test_constant_scores_are_not_trusted():
    run, metric, scores = example()
    assert not gi.verify(run, metric, torch.ones(run.n), 2).trustworthy


@pytest.mark.parametrize("change, error, words", [
    ({"scores": torch.zeros(7)}, ValueError, "240 training instances, but their shape is \\(7,\\): pass"),
    ({"scores": torch.full((240,), torch.nan)}, ValueError, "finite numbers, but 240 of 240"),
    ({"scores": {"a": torch.zeros(240)}}, TypeError, "a dict of scores was given: go through a dict"),
    ({"metric": {}}, ValueError, "the dict of metrics is empty"),
    ({"metric": {"a": abs, "b": abs}}, TypeError, "a dict of 2 metrics was given: go through"),
    ({"metric": lambda gan, state: torch.zeros(())}, TypeError, "which way is better"),
    ({"probes": 7}, ValueError, "probes is a whole number, 8 or more"),
    ({"last_epochs": 9}, ValueError, "between 1 and the run's 3 epochs"),
    ({"last_steps": 1, "last_epochs": None, "remove": range(216)}, ValueError, "8 instances or more, but the window draws [0-7]: take a longer one"),
    ({"remove": [240]}, IndexError, "instances are 0..239"),
])
def test_bad_input_gets_a_sentence(change, error, words):
    run, metric, scores = example()
    with pytest.raises(error, match=words):
        gi.verify(**{"run": run, "metric": metric, "scores": scores, "last_epochs": 2, **change})


def test_summed_influences_predict_what_sets_do():
    run, metric, scores = example()
    found = gi.linear_datamodelling_score(run, metric, scores, 2, fraction=0.05, subsets=12)
    assert found.spearman > 0.95 and found.low <= found.spearman <= found.high <= 1 and len(found.true) == 12
    assert found.spearman == pytest.approx(stats.spearmanr(found.predicted, found.true).statistic)
    assert gi.linear_datamodelling_score(run, metric, -scores, 2, fraction=0.05, subsets=12).spearman == pytest.approx(-found.spearman)


def test_sets_are_what_is_removed():
    run, metric, _ = example()
    one, two = (gi.linear_datamodelling_score(run, metric, torch.arange(240.0) ** power, 1, fraction=0.01, subsets=4) for power in (1, 2))
    assert torch.equal(one.true, two.true)
    for total, squares, true in zip(one.predicted, two.predicted, one.true):  # of two numbers, which these tell
        half = (2 * squares - total**2).sqrt() / 2
        without = gi.retrain(run, [round(float(total / 2 - half)), round(float(total / 2 + half))], 1)
        assert float(true) == pytest.approx((metric(run.gan, without) - metric(run.gan, run.final)).item(), abs=1e-14)


@pytest.mark.parametrize("change, words", [
    ({"fraction": 1e-3}, "fraction=0.001 of 240 instances is 0"), ({"fraction": 1.0}, "is 240: choose"), ({"subsets": 2}, "3 or more"),
    ({"scores": torch.zeros(3)}, "their shape is \\(3,\\)")])
def test_bad_sets_get_a_sentence(change, words):
    run, metric, scores = example()
    with pytest.raises(ValueError, match=words):
        gi.linear_datamodelling_score(**{"run": run, "metric": metric, "scores": scores, **change})


def test_smoothness_is_its_definition():
    run, start, seen = example(nn.ReLU)[0], example(nn.ReLU)[0].window(2), []

    def watched(state, start, stop, keep=None):
        seen.append(keep)
        return walk(state, start, stop, keep)

    with pytest.MonkeyPatch.context() as patch:
        walk = run.walk
        patch.setattr(run, "walk", watched)
        found = gi.smoothness(run, 2, step=0.5)
    once, twice = (keep - 1 for keep in seen if keep is not None)
    torch.testing.assert_close(twice, 2 * once)
    assert once.std() == pytest.approx(0.5, rel=0.2)
    ends = [last(run.walk(run.state(start), start, run.steps, 1 + times * once)) for times in (0, 1, 2)]
    agree = total = 0.0
    for a, b, c in zip(*(np.concatenate([p.numpy().ravel() for p in end.tensors()]) for end in ends)):
        agree += abs(c - a) * np.sign(b - a) * np.sign(c - b)
        total += abs(c - a)
    assert found == pytest.approx(agree / total)
    assert gi.smoothness(run, 2, step=0.5, seed=1) != found


def test_smooth_training_is_smoother():
    data, calm = tiny_data(240), example()[0]
    wild = gi.train(tiny_gan(nn.ReLU), data, 10, batch_size=20, optimizer=gi.SGD(2.0), seed=7)
    assert gi.smoothness(calm) > 0.98 > 0.8 > gi.smoothness(wild)


@pytest.mark.parametrize("step", [0, -0.1, True, float("nan"), "much"])
def test_a_bad_step_gets_a_sentence(step):
    with pytest.raises(ValueError, match="a positive number, but got"):
        gi.smoothness(example()[0], step=step)


def test_shares_of_kinks_are_compared_on_one_run():
    from gan_influence.studies.trust import kink_shares
    rows = list(kink_shares([3], windows=(1, 2), shares=(0.0, 1.0), instances=12, n=200, epochs=3))
    assert [(row["last_epochs"], row["kinks"]) for row in rows] == [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)]
    parts, gan = gi.data.normal_2d(200, 1_000, 10, seed=3), gi.models.fcgan(seed=3)
    run = gi.train(gan, parts.train, 3, 100, gi.SGD(1e-2), "simultaneous", seed=3)
    metric = gi.metrics.AverageLogLikelihood(parts.valid, gan.sample_latents(1_000, seed=3))
    truth = gi.leave_one_out(run, metric, range(12), last_epochs=2)
    for row, share in zip(rows[2:], (0.0, 1.0)):
        assert row["slope"] == pytest.approx(gi.agreement(gi.influence(run, metric, last_epochs=2, kinks=share)[:12], truth).slope)
    assert rows[2]["slope"] != rows[3]["slope"]
