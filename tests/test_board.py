"""The leaderboard: every method against a brute force, the judges against scipy, the CSV route and its refusals."""

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import gan_influence as gi
from conftest import tiny_data, tiny_gan, tiny_metric, tiny_run
from gan_influence.cli.main import main
from gan_influence.readings.retraining import fractional_leave_one_out
from gan_influence.studies import board, judges, methods, recording, released, settings, trained
from gan_influence.studies.released import Question
from gan_influence.tools.streams import torch_stream

SETTINGS = settings.SETTINGS
TINY = settings.Setting(n=100, epochs=3, batch_size=20, held_out=12, latents=12, activation="tanh", last_epochs=1, instances=20)


def ask(run: gi.Trajectory, last_epochs: int = 2) -> Question:
    return Question(run, tiny_metric(run.gan), last_epochs, gi.data.normal_2d(1, 15, 1, seed=4).valid)


def adam_run(order: str = "alternating", **options) -> gi.Trajectory:
    return gi.train(tiny_gan(), tiny_data(), 3, 6, gi.Adam(0.05, betas=(0.5, 0.9), eps=1e-3), order, seed=7, **options)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-9) -> bool:
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


# Methods.


def test_exact_is_the_slope_of_the_run():
    question = ask(tiny_run())
    slope = sum(fractional_leave_one_out(question.run, question.metric, range(24), share, 2) for share in (1e-5, -1e-5)) / 2
    assert close(methods.exact(question), slope, 1e-6)


def test_the_estimators_are_one_where_they_should_be_and_differ_elsewhere():
    simultaneous, alternating, adam = (ask(run) for run in (tiny_run("simultaneous"), tiny_run(), adam_run()))
    both = released.released_2021, released.released_2025
    for question, same, other in ((simultaneous, *both), (alternating, *both[::-1])):
        exact = methods.exact(question)
        assert close(same(question), exact) and not close(other(question), exact, 0.1)
        assert close(methods.moments_constant(question), exact)
    exact = methods.exact(adam)
    assert not any(close(one(adam), exact, 0.1) for one in (methods.moments_constant, released.released_2021, released.released_2025))
    assert close(methods.moments_constant(adam), unrolled(adam, lambda t, memory: memory, cut=True))
    assert close(released.released_2025(adam), unrolled(adam, lambda t, memory: [adam.run.final.generator_memory, memory[1]], cut=True, last=True))
    assert close(exact, unrolled(adam, lambda t, memory: memory))


def unrolled(question: Question, memory_of, cut: bool = False, last: bool = False) -> torch.Tensor:
    """Brute force: torch differentiates the window's alternating updates, written out, by every instance's weight; states are put back
    to the recorded ones in value, so that only the derivative is the estimator's."""
    run, metric, gan = question.run, question.metric, question.run.gan
    start, (rule, _) = run.window(question.last_epochs), run.dynamics.optimizers
    weights = torch.ones(run.n, dtype=torch.float64, requires_grad=True)
    state = run.state(start)
    players, memory = [dict(own) for own in state[:2]], [dict(own) for own in state[2:4]]
    for t in range(start, run.steps):
        recorded, batch = run.state(t), run.batch(t)
        players = [at(own, there) for own, there in zip(players, recorded[:2])]
        memory = [at(own, there) for own, there in zip(memory, recorded[2:4])]
        if cut:
            memory = [dict(own) for own in recorded[2:4]]
        used = memory_of(t, memory)
        for player in (1, 0):
            leaves = [{name: p.view_as(p) if p.requires_grad else p.clone().requires_grad_() for name, p in own.items()} for own in players]
            fake = nn_call(gan.generator, leaves[0], batch.z if player else batch.generator_z)
            loss = torch.nn.functional.softplus((-1 if not player else 1) * nn_call(gan.discriminator, leaves[1], fake)).mean()
            if player:
                w = weights[run.schedule.indices(t)]
                loss = loss + (w * torch.nn.functional.softplus(-nn_call(gan.discriminator, leaves[1], batch.x)[:, 0])).mean()
            gradients = dict(zip(leaves[player], torch.autograd.grad(loss, list(leaves[player].values()), create_graph=True)))
            number = run.steps if last and not player else batch.number[player]
            players[player], memory[player] = rule.update(players[player], gradients, used[player], batch.learning_rate[player], number)
            if player:
                players[1] = at(players[1], run.state(t + 1).discriminator)
    generator = at(players[0], run.final.generator)
    (slope,) = torch.autograd.grad(metric(gan, run.final._replace(generator=generator)), weights)
    return gi.harmfulness(-slope, metric)


def at(own: dict, there: dict) -> dict:
    return {name: p - p.detach() + there[name] for name, p in own.items()}


def nn_call(module: nn.Module, parameters: dict, x: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(module, parameters, (x,))


def test_the_2025_estimator_counts_a_moving_average():
    run = gi.train(tiny_gan(), tiny_data(), 3, 6, gi.SGD(0.1), seed=7, average=0.9)
    assert close(released.released_2025(ask(run)), methods.exact(ask(run)))  # of plain SGD nothing is left out


def test_damping_keeps_the_first_order_alone():
    question = ask(tiny_run())
    small, smaller = (released.released_2025(question, scale) / scale for scale in (1e-4, 1e-6))
    assert close(small, smaller, 1e-3) and not close(small, methods.exact(question), 0.01)


def test_aid_as_released_forgets_to_add():
    """Against dense matrices: with a full batch the two halves are two matrices, whose product is applied K times."""
    run = gi.train(tiny_gan(), tiny_data(12), 2, 12, gi.SGD(0.1), "simultaneous", seed=7)
    question, s, K = ask(run, 1), 0.05, 7
    gan, final, t = run.gan, run.final, run.steps - 1
    flat = torch.cat([p.flatten() for own in final[:2] for p in own.values()])
    batch, size = run.batch(t), sum(p.numel() for p in final.generator.values())

    def field(theta: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        parts = iter(theta.split([p.numel() for own in final[:2] for p in own.values()]))
        G, D = ({name: next(parts).view_as(own[name]) for name in own} for own in final[:2])
        fake = nn_call(gan.generator, G, batch.z)
        of_g = torch.nn.functional.softplus(-nn_call(gan.discriminator, D, fake)).mean()
        on_real = torch.nn.functional.softplus(-nn_call(gan.discriminator, D, batch.x)[:, 0])
        of_d = (weights * on_real).mean() + torch.nn.functional.softplus(nn_call(gan.discriminator, D, fake)).mean()
        by_g, by_d = (torch.autograd.grad(loss, theta, create_graph=True)[0] for loss in (of_g, of_d))
        return torch.cat([by_g[:size], by_d[size:]])

    ones = torch.ones(12, dtype=torch.float64)
    J, b = torch.autograd.functional.jacobian(field, (flat.requires_grad_(), ones))
    state = final.map(lambda p: p.requires_grad_())
    (g,) = [torch.cat([p.flatten() for p in torch.autograd.grad(question.metric(gan, state), list(state.generator.values()))])]
    g = torch.cat([g, torch.zeros(len(flat) - size, dtype=torch.float64)])
    halves = [torch.eye(len(flat), dtype=torch.float64) for _ in range(2)]
    halves[0] -= s * torch.cat([J[:size], torch.zeros_like(J[size:])]).T
    halves[1] -= s * torch.cat([torch.zeros_like(J[:size]), J[size:]]).T
    for summed in (False, True):
        w = g
        for _ in range(K):
            w = halves[1] @ (halves[0] @ w) + summed * g
        expected = torch.zeros(12, dtype=torch.float64).index_add_(0, run.schedule.indices(t), s * (b.T @ w))
        assert close(released.released_aid(question, K, s, summed), gi.harmfulness(expected, question.metric))


def test_gradients_of_every_instance():
    question = ask(tiny_run())
    run, x = question.run, question.run.x
    discriminator, by_hand = run.gan.discriminator, []
    for one in x:
        parameters = {name: p.requires_grad_() for name, p in run.final.discriminator.items()}
        loss = torch.nn.functional.softplus(-nn_call(discriminator, parameters, one[None]))[0, 0]
        by_hand.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parameters.values()))]))
    by_hand = torch.stack(by_hand)
    assert close(methods.per_sample_gradients(run, run.final, x, chunk=7), by_hand)
    assert close(methods.gradient_norm(question), by_hand.norm(dim=1))
    # In as many dimensions as there are parameters a projection loses nothing: TRAK is the influence function with the gradients' Gram matrix.
    loss, state = gi.metrics.DiscriminatorLoss(question.held_out, question.metric.latents), run.final.map(lambda p: p.requires_grad_())
    g = torch.cat([one.flatten() for one in torch.autograd.grad(loss(run.gan, state), list(state.discriminator.values()))])
    # By hand in the space of instances (Woodbury): Φ(ΦᵀΦ + λI)⁻¹φ = (ΦΦᵀ + λI)⁻¹Φφ, without the square matrix of the features.
    P = torch.randn(by_hand.shape[1], 10, generator=torch_stream("directions", 0), dtype=torch.float64)
    features, target = by_hand @ P, g @ P
    damping = 1e-3 * features.square().sum() / 10
    expected = -torch.linalg.solve(features @ features.T + damping * torch.eye(24, dtype=torch.float64), features @ target)
    assert close(methods.trak(question, dimensions=10), expected, 1e-6)


def test_tracin_is_what_the_loss_would_change_by():
    """One step: minus η/B·⟨∇ℓ_j, ∇L⟩ is the first order of the held-out loss's change when the update is made with a little more of instance j."""
    question = ask(tiny_run("simultaneous"), 1)
    run, loss = question.run, gi.metrics.DiscriminatorLoss(question.held_out, question.metric.latents)
    expected = torch.zeros(run.n, dtype=torch.float64)
    for t in range(run.window(1), run.steps):
        state, batch = run.state(t), run.batch(t)
        for row, j in enumerate(run.schedule.indices(t).tolist()):
            ends = []
            for weight in (1 + 1e-4, 1 - 1e-4):
                weights = run.weights(t).clone()
                weights[row] = weight
                moved = run.dynamics.step(state, batch, weights).discriminator
                base = run.dynamics.step(state, batch, run.weights(t)).discriminator
                nudged = {name: p + (moved[name] - base[name]).detach() for name, p in state.discriminator.items()}
                ends.append(float(loss(run.gan, state._replace(discriminator=nudged))))
            expected[j] += (ends[0] - ends[1]) / 2e-4
    assert close(methods.tracin(question), expected, 1e-5)


def test_methods_that_look_at_no_gradient():
    question = ask(tiny_run())
    run, fake = question.run, question.run.gan.generate(question.run.final, question.metric.latents).detach()
    assert close(methods.nearest_generated(question), torch.tensor([min(float((x - y).norm()) for y in fake) for x in run.x], dtype=torch.float64))
    assert torch.equal(methods.random(question), gi.random_scores(24, 0))
    assert torch.equal(methods.isolation_forest(question), gi.isolation_forest(run.x, 0))
    loss = gi.metrics.DiscriminatorLoss(question.held_out, question.metric.latents)
    assert torch.equal(methods.discriminator_loss(question), -gi.influence(run, loss, 2))


def test_released_estimators_refuse_what_they_do_not_know():
    run = gi.train(tiny_gan(), tiny_data(), 2, 6, gi.SGD(0.1), seed=7, discriminator_steps=2)
    for method in (released.released_2021, released.released_2025, released.released_aid):
        with pytest.raises(ValueError, match="one update of each player a step, but this run has others"):
            method(ask(run, 1))


# Judges.


def test_judges_are_scipys():
    random = np.random.default_rng(0)
    estimate, truth = random.integers(8, size=30).astype(float), random.standard_normal(30)
    which = np.concatenate([np.arange(30)[None], random.integers(30, size=(5, 30))])
    for row, tau, rho in zip(which, judges.kendall(estimate, truth, which), judges.spearman(estimate, truth, which)):
        assert tau == pytest.approx(stats.kendalltau(estimate[row], truth[row]).statistic)
        assert rho == pytest.approx(stats.spearmanr(estimate[row], truth[row]).statistic)
    whole = np.arange(30)[None]
    assert np.isnan(judges.kendall(np.ones(30), truth, whole)) and np.isnan(judges.spearman(np.ones(30), truth, whole))
    assert judges.precision(truth, truth, whole) == 1 and judges.precision(-truth, truth, whole) == 0 == judges.precision(-truth, truth, whole, -1)
    half = truth.copy()
    half[np.argsort(-truth)[:5]] -= 100  # five of the ten at the top now lie at the bottom
    assert judges.precision(half, truth, whole) == 0.5 and judges.precision(half, truth, whole, -1) == 0.5


def test_an_interval_covers():
    """Of a known correlation, in samples drawn anew, the 95 % interval of tau holds it in nine of ten or more."""
    random, held = np.random.default_rng(1), 0
    for _ in range(30):
        a = random.standard_normal(100)
        bank = {"s|0|left out": torch.arange(100), "s|0|leave-one-out": torch.from_numpy(a + random.standard_normal(100))}
        for fraction in judges.FRACTIONS:
            bank |= {f"s|0|subsets {fraction:g}": torch.tensor([[0], [1], [2]]), f"s|0|changes {fraction:g}": torch.arange(3.0)}
        row = judges.judge(bank, "s", {0: torch.from_numpy(a)})
        held += row["tau low"] <= 0.5 <= row["tau high"]  # 2/π·arcsin(ρ) with ρ = 1/√2
    assert held >= 27


# The bank and the command.


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """A bank of two seeds of a tiny setting, and how to ask for it."""
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(board.METHODS, "AID, summed", lambda question: released.released_aid(question, 3, summed=True))
        patch.setitem(board.METHODS, "released 2025, AID", lambda question: released.released_aid(question, 3))
        for module in (board, trained, settings):
            patch.setattr(module, "SETTINGS", {"tiny": (TINY, range(2))})
        recording.record(TINY, range(2), folder / "tiny", compile=False)
        board.gather(folder, folder / "board")
        yield folder / "board"


def write_scores(path, scores: dict[int, torch.Tensor], setting: str = "tiny") -> None:
    lines = [f"{setting},{seed},{j},{float(score)!r}" for seed, own in scores.items() for j, score in enumerate(own)]
    path.write_text("\n".join(["setting,seed,instance,score", *lines]) + "\n")


def test_the_bank_holds_the_truth(bank):
    header, tensors, cleansing = board.read_bank(bank)
    question = trained.ask("tiny", 1)
    left_out = tensors["tiny|1|left out"].long()
    assert torch.equal(tensors["tiny|1|leave-one-out"], gi.leave_one_out(question.run, question.metric, left_out, 1)) and len(left_out.unique()) == 20
    influence = gi.influence(question.run, question.metric, 1)
    assert torch.equal(tensors["tiny|1|scores|exact"], influence.float())
    for fraction in judges.FRACTIONS:
        found = gi.linear_datamodelling_score(question.run, question.metric, influence, 1, fraction, board.SUBSETS, seed=1)
        assert torch.equal(found.true, tensors[f"tiny|1|changes {fraction:g}"])
        row = judges.judge(tensors, "tiny", {1: influence})
        assert row[f"lds {fraction:.0%}"] == pytest.approx(found.spearman)
    assert {row["method"] for row in cleansing} == set(methods.METHODS) and len(cleansing) == 2 * len(methods.METHODS)
    assert header["settings"]["tiny"]["metric"] == question.metric.name and set(header["settings"]["tiny"]["seeds"]) == {"0", "1"}


def test_gathering_again_keeps_what_is_there(bank, tmp_path):
    before = board.read_bank(bank)
    (tmp_path / "tiny").mkdir()
    for path in (bank.parent / "tiny").glob("seed-1_*"):
        (tmp_path / "tiny" / path.name).write_bytes(path.read_bytes())
    board.gather(tmp_path, bank)
    after = board.read_bank(bank)
    assert after[0] == before[0] and after[1].keys() == before[1].keys()
    assert sorted(map(str, after[2])) == sorted(map(str, before[2]))
    with pytest.raises(FileNotFoundError, match="holds no recorded seed"):
        board.gather(tmp_path / "none", bank)


def test_a_method_of_ones_own(bank, tmp_path, capsys):
    header, tensors, cleansing = board.read_bank(bank)
    write_scores(tmp_path / "mine.csv", {0: tensors["tiny|0|scores|exact"].double()})
    assert main(["board", str(tmp_path / "mine.csv"), "--bank", str(bank)]) == 0
    seen = capsys.readouterr()
    of = {line.split("  ")[0]: line.split(maxsplit=1)[1] for line in seen.out.splitlines() if line.startswith(("mine", "exact"))}
    end = of["mine"].rfind("  ")
    assert of["mine"][:end] == of["exact"][:end] and of["mine"].endswith("-")  # the same scores, but never cleansed by
    assert "1 seed, 20 left out" in seen.out and "--retrain" in seen.err
    rows = board.table(header, tensors, cleansing, board.read_scores(tmp_path / "mine.csv", header), "mine")
    assert rows[0]["tau"] == rows[1]["tau"] and rows[0]["method"] == "mine"
    assert main(["board", str(tmp_path / "mine.csv"), "--bank", str(bank), "--retrain", "--name", "my own"]) == 0
    gains = {line[:8].strip(): line.split()[-4:] for line in capsys.readouterr().out.splitlines() if line.startswith(("my own", "exact"))}
    assert gains["my own"] == gains["exact"]


def test_the_recorded_table_is_printed(bank, capsys):
    assert main(["board", "--bank", str(bank)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in methods.METHODS) and "2 seeds" in out
    with open(f"{bank}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == list(methods.METHODS)
    assert all(-1 <= float(row["tau low"]) <= float(row["tau high"]) <= 1 for row in rows)


GOOD = {0: torch.arange(100.0)}


@pytest.mark.parametrize("spoil, words", [
    (lambda text: text.replace("score\n", "value\n", 1), "has setting, seed, instance, value: add score"),
    (lambda text: "", "has none: add setting, seed, instance, score"),
    (lambda text: text.splitlines()[0] + "\n", "holds no score"),
    (lambda text: text.replace("tiny,0,3,", "huge,0,3,"), "tiny: 0, 1.*line 5 of .* says 'huge', '0'"),
    (lambda text: text.replace("tiny,0,3,", "tiny,7,3,"), "says 'tiny', '7'"),
    (lambda text: text.replace("tiny,0,3,3.0", "tiny,0,3,high"), "line 5 of .* says '3', 'high'"),
    (lambda text: text.replace("tiny,0,3,3.0", "tiny,0,3"), "says '3', None"),
    (lambda text: text.replace("tiny,0,3,3.0", "tiny,0,3,nan"), "instance 3, score nan, is not finite"),
    (lambda text: text.replace("tiny,0,3,", "tiny,0,100,"), "instance 100, score 3, is no instance of 0..99"),
    (lambda text: text.replace("tiny,0,3,", "tiny,0,2,"), "line 5 .* is the second of its instance"),
    (lambda text: text.replace("tiny,0,3,3.0\n", ""), "lacks 1 of 100 of tiny, seed 0 .first: 3"),
])
def test_a_bad_file_is_refused_with_a_sentence(spoil, words, bank, tmp_path, capsys):
    path = tmp_path / "mine.csv"
    write_scores(path, GOOD)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(SystemExit):
        main(["board", str(path), "--bank", str(bank)])
    with pytest.raises(ValueError, match=words):
        board.read_scores(path, board.read_bank(bank)[0])
    assert "gan-influence board: error: " in capsys.readouterr().err


def test_what_else_is_refused(tmp_path, capsys):
    for arguments, words in ((["--bank", str(tmp_path / "none")], "start from a clone"), (["--record", "huge"], "--record names huge"),
                             (["--retrain"], "is not here" if not (recording.RECORDED / "board.json").exists() else "no CSV of scores was given")):
        with pytest.raises(SystemExit):
            main(["board", *arguments])
        assert words in capsys.readouterr().err
    with pytest.raises(ValueError, match="but 'huge' was asked for"):
        trained.ask("huge", 0)


def test_help_is_quick_and_names_the_columns():
    code = ("import sys, gan_influence.cli.main as c\ntry: c.main(['board', '--help'])\n"
            "finally: print(*{'torch', 'pandas'} & set(sys.modules), file=sys.stderr)")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "" and all(word in ran.stdout for word in (*board.COLUMNS, *SETTINGS))


@pytest.mark.parametrize("name", ["2d-adam", "faces-adam"])
def test_settings_train_the_same_run_again(name, monkeypatch):
    if name == "faces-adam":
        pytest.importorskip("dicebear")
    small = dataclasses.replace(SETTINGS[name][0], n=60, epochs=1, batch_size=20, held_out=40, latents=40, last_epochs=1, instances=5)
    monkeypatch.setattr(trained, "SETTINGS", {name: (small, range(1))})
    one, again = (trained.ask(name, 0) for _ in range(2)) if name == "2d-adam" else [trained.ask(name, 0)] * 2  # drawing faces takes seconds
    assert all(torch.equal(a, b) for a, b in zip(one.run.final.tensors(), again.run.final.tensors()))
    assert float(one.metric(one.run.gan, one.run.final)) == float(again.metric(again.run.gan, again.run.final))
    for method in (released.released_2021, released.released_2025, methods.tracin):
        assert (scores := method(one)).shape == (60,) and scores.isfinite().all()


@pytest.mark.skipif(not (recording.RECORDED / "board.json").exists(), reason="the repository's recordings are not here")
def test_what_is_recorded_is_of_the_settings_as_they_are():
    header, tensors, _ = board.read_bank()
    for name, made in header["settings"].items():
        assert made["config"] == json.loads(json.dumps(dataclasses.asdict(SETTINGS[name][0])))
        for seed in made["seeds"]:
            assert tensors[f"{name}|{seed}|leave-one-out"].isfinite().all() and len(tensors[f"{name}|{seed}|scores|exact"]) == made["config"]["n"]
    assert sum(path.stat().st_size for path in recording.RECORDED.glob("board*")) < 20 * 2**20
