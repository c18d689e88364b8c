"""What a recorded loop did: in which order it played, by which loss and penalty; and whether that is so."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

from ..game.gan import GAN
from ..game.losses import LOSSES, Loss, named_loss
from ..game.penalties import R1, GradientPenalty
from ..game.state import State
from ..game.trial import returns_probabilities
from ..tools.checks import counted
from .conditions import refuse_other_modes, try_networks
from .dynamics import Dynamics
from .known import NotUnderstood, Pass, Seen, Step, fingerprint
from .optimizers import resting
from .plan import DISCRIMINATOR, GENERATOR, PLAYERS, Judge, Make, Plan, Update
from .rows import Rows
from .schedule import RecordedSchedule
from .trajectory import Trajectory, last


def understand(seen, loss=None, penalty=None, kind: type[GAN] = GAN) -> Trajectory:
    """The run that a `Recorder` saw; see `Recorder.trajectory`."""
    steps = seen.steps
    refuse_other_modes(seen.rows.device)
    shape = next((tuple(step.shape) for step in steps if step.shape is not None), None)
    rows = seen.rows if shape in (None, seen.known.shape) else Rows(seen.given, seen.rows.device, seen.rows.dtype, shape, anywhere=True)
    first = next(event for step in steps for event in step.events if isinstance(event, Pass) and event.player == GENERATOR)
    copies = [copy if copy is not None else module for copy, module in zip(seen.copies, seen.players)]
    try:
        gan = kind(*copies, _one_latent(first))
    except ValueError as error:
        raise NotUnderstood(f"step 0: {error}") from error
    gan.generator, gan.discriminator = seen.players
    memory = [bool(network.kept) for network in (gan.apply_generator, gan.apply_discriminator)]
    plans = [_plan(t, step, memory) for t, step in enumerate(steps)]
    parts = {"indices": [torch.cat([i for i, *_ in step.rows]) if step.rows else torch.empty(0, dtype=torch.int64) for step in steps]}
    makes = [[step.events[i] for i in order if step.events[i].player == GENERATOR] for step, (_, order) in zip(steps, plans)]
    for column in range(len(first.inputs)):
        empty = first.inputs[column][:0].cpu()
        parts[f"latents{column or ''}"] = [torch.cat([make.inputs[column].cpu() for make in made]) if made else empty for made in makes]
    parts["mix"] = [torch.cat([a for _, a, _ in step.rows]) if step.rows else torch.empty(0, dtype=rows.dtype) for step in steps]
    if any(x is not None for step in steps for *_, x in step.rows):
        parts["inputs"] = [torch.cat([rows.take(i)[0] if x is None else x for i, _, x in step.rows]) if step.rows else rows.take(parts["indices"][0][:0])[0]
                           for step in steps]
    drawn = RecordedSchedule(len(rows), parts)
    try:
        try_networks(gan, rows, drawn, confirmed=True)
    except ValueError as error:
        raise NotUnderstood(f"step 0: {error}") from error
    random = [network.random for network in (gan.apply_generator, gan.apply_discriminator)]
    if any(random):
        throws = [[step.events[i].throw for i in order if random[step.events[i].player]] for step, (_, order) in zip(steps, plans)]
        like = next(throw for some in throws for throw in some if throw is not None)
        drawn.parts["dice"] = [torch.stack([like if throw is None else throw for throw in some] or [like])[:len(some)] for some in throws]
    rates = [tuple(_rates([event.rate for event in step.events if isinstance(event, Seen) and event.player == player]) for player in (0, 1)) for step in steps]
    dynamics = Dynamics(gan, seen.values, clip_weights=seen.clip, **_average(seen, gan))
    states = {t: _fitting(state, dynamics.initial()) for t, state in seen.states.items()}

    def run(plans: list[Plan]) -> Trajectory:
        different = list(dict.fromkeys(plans))
        place = {plan: k for k, plan in enumerate(different)}
        return Trajectory(dynamics, rows, drawn.following(different, [place[plan] for plan in plans], seen.counts), seen.stride, states, rates)

    plans = [plan for plan, _ in plans]
    problem = None
    for settled in _choices(run, gan, set(states), steps, plans, loss, penalty):
        found = run(settled)
        try:
            worst = _verify(found, steps)
        except NotUnderstood as error:
            problem = problem or error
            continue
        found.report = _report(found, seen, worst)
        return found
    raise problem


def _one_latent(make: Pass) -> int | tuple[int, ...]:
    shape = make.inputs[0].shape[1:]
    return shape[0] if len(shape) == 1 else tuple(shape)


def _rates(rates: list[float]):
    return rates[0] if len(set(rates)) == 1 else tuple(rates) or 0.0


def _fitting(state: State, like: State) -> State:
    """What a recorded state holds beyond the engine's left out."""
    if missing := [name for own, wanted in zip(state, like) for name in wanted if name not in own]:
        raise NotUnderstood(f"step 0: the moving average is a copy of the generator, but it has no {missing[0]!r}: pass average= the copy that the loop "
                            "averages")
    return State(*({name: own[name] for name in wanted} for own, wanted in zip(state, like)))


def _plan(t: int, step: Step, memory: list[bool]) -> tuple[Plan, list[int]]:
    """A step's plan, and which of its events are passes in it: those that an update uses, or that leave something in a buffer."""
    events, used, updates = step.events, {}, {}
    for i, event in enumerate(events):
        if isinstance(event, Seen):
            since = max([-1, *(k for k in range(i) if isinstance(events[k], Seen) and events[k].player == event.player)])
            judged = [k for k in range(since + 1, i) if isinstance(events[k], Pass) and events[k].player == DISCRIMINATOR]
            at = {kind: [(k, n) for k in judged for n, part in enumerate(events[k].parts) if part[0] == kind] for kind in ("real", "fake", "mix")}
            if event.player == GENERATOR:
                live = [one for one in at["fake"] if events[one[0]].wants_grad] or at["fake"]
                updates[i] = Update(GENERATOR, fake=live[-1] if live else None)
            else:
                fakes = [one for one in at["fake"] if not events[one[0]].wants_grad and one[0] > max([-1, *_generators(events, i)])] or at["fake"]
                sloped = [one for one in at["real"] if events[one[0]].wants_grad]
                real = [one for one in at["real"] if one not in sloped] or sloped
                updates[i] = Update(DISCRIMINATOR, real[-1] if real else None, fakes[-1] if fakes else None, (at["mix"] or sloped or [(None, 0)])[-1][0])
            if updates[i].real is updates[i].fake is updates[i].penalty is None:
                raise NotUnderstood(f"step {t}: an update of the {PLAYERS[event.player]} follows what the discriminator said of a batch, but it had said "
                                    "nothing since the update before: an optimiser that steps twice on one backward pass has no counterpart here")
            used |= {k: True for k in (updates[i].penalty, *(one and one[0] for one in updates[i][1:3])) if k is not None}
    keep = [i for i, event in enumerate(events) if isinstance(event, Pass) and (i in used or event.training and memory[event.player] and (
        event.player == GENERATOR or event.parts))]
    makes = [i for i, event in enumerate(events) if isinstance(event, Pass) and event.player == GENERATOR]
    needed = {makes[part[-1]] for i in keep for part in events[i].parts if part[0] != "real"}
    order = sorted({*keep, *needed})
    place = {i: n for n, i in enumerate(i for i in order if events[i].player == DISCRIMINATOR)}
    fakes = {k: n for n, k in enumerate(k for k, i in enumerate(makes) if i in order)}
    plan, first = [], 0
    for i, event in enumerate(events):
        if i in updates:
            spots = [one and (place[one[0]], one[1]) for one in updates[i][1:3]]
            plan.append(Update(event.player, *spots, place.get(updates[i].penalty)))
        elif i in order and event.player == GENERATOR:
            plan.append(Make((first, first + len(event.inputs[0])), False, event.training))
            first += len(event.inputs[0])
        elif i in order:
            plan.append(Judge(tuple((*part[:-1], fakes[part[-1]]) if part[0] != "real" else part for part in event.parts), event.training))
    return tuple(plan), order


def _generators(events: list, before: int) -> list[int]:
    return [k for k in range(before) if isinstance(events[k], Seen) and events[k].player == GENERATOR]


def _average(seen, gan: GAN) -> dict:
    """Decay of the moving average, and what becomes of its buffers, from the first kept states that tell."""
    if seen.average is None:
        return {}
    kept = sorted(seen.states)
    for a, b in zip(kept, kept[1:]):
        updates = sum(isinstance(event, Seen) and event.player == GENERATOR for step in seen.steps[a:b] for event in step.events)
        before, after, own = seen.states[a].average, seen.states[b].average, seen.states[b]
        if updates == 1:
            names = list(own.generator)
            towards = torch.cat([(own.generator[name] - before[name]).flatten() for name in names]).double()
            moved = torch.cat([(after[name] - before[name]).flatten() for name in names]).double()
            if towards.norm() > 0:
                share = float(moved @ towards / (towards @ towards))
                buffers = {name: b for name, b in own.generator_buffers.items() if name in gan.apply_generator.buffers()}
                copied = all(torch.equal(after[name], b) for name, b in buffers.items()) or all(torch.equal(before[name], b) for name, b in buffers.items())
                how = False if copied else None if all(torch.equal(after[name], before[name]) for name in buffers) else True
                return {"average": _simple(1 - share, 1e-6 if own.generator[names[0]].dtype == torch.float64 else 1e-4), "average_buffers": how}
    raise NotUnderstood("a moving average is read off two kept states with one update of the generator between them, but none were seen: record more steps")


def _simple(number: float, tolerance: float) -> float:
    near = Fraction(number).limit_denominator(100_000)
    return float(near) if abs(float(near) - number) <= tolerance * abs(number) else number


def _choices(run, gan: GAN, seen: set[int], steps: list[Step], plans: list[Plan], loss, penalty) -> Iterator[list[Plan]]:
    """Plans with each kind of update's scale and penalty filled in, and the loss set: all that agree with the recorded gradients, likeliest first."""
    kinds: dict[tuple, list] = {}
    for t, (step, plan) in enumerate(zip(steps, plans)):
        updates = [i for i, event in enumerate(plan) if type(event) is Update]
        for i, event in zip(updates, (event for event in step.events if isinstance(event, Seen))):
            kinds.setdefault(_kind(plan, plan[i]), []).append((t, i, event))
    plans = list(plans)
    double = gan.dtype == torch.float64
    tolerance = 1e-7 if double else 2e-3
    names = _candidates(gan, run(plans), loss)
    chosen: dict[tuple, dict] = {kind: {} for kind in kinds}
    for kind, found in sorted(kinds.items(), key=lambda item: item[1][0][:2]):
        tried = {}
        for name, one in names.items():
            gan.loss, gan.loss_name = one, name
            settled = _settle(plans, {k: next(iter(v.values())) for k, v in chosen.items() if v})
            known = next((value[1] for named in chosen.values() for value in named.values() if value[1] is not None), None)
            asked = [x for x in found if x[2].gradients is not None][:None if kind[3] == "real" else 2]
            fits = []
            for t, i, event in asked:
                fits.append(_fit(run, gan, settled, kind, t, i, event, penalty, known))
                if fits[-1][0] > tolerance:
                    break
                if kind[3] == "real":  # what comes next may lie behind this step
                    settled = _settle(settled, {kind: (_simple(fits[-1][1], 1e-9 if double else 1e-3), fits[-1][2])}, only=t)
            tried[name] = max((fit[0] for fit in fits), default=0.0)
            allowed = tolerance * (1 + max(t - max(s for s in seen if s <= t) for t, *_ in asked))
            if fits and tried[name] <= allowed:
                scales = [fit[1] for fit in fits]
                if max(scales) - min(scales) > 2 * allowed * max(map(abs, scales)):
                    raise NotUnderstood(f"step {asked[0][0]}: the gradient of the {PLAYERS[kind[0]]} is that of the loss {name!r} times a factor that is "
                                        "another in every "
                                        f"step ({', '.join(f'{scale:.3g}' for scale in scales)} at steps {', '.join(str(t) for t, *_ in asked)}): clipped "
                                        "gradients do that, and have no counterpart here; weight clipping, spectral normalisation and penalties do")
                due = [t for (t, *_), fit in zip(asked, fits) if fit[2] is not None]
                chosen[kind][name] = (_simple(fits[0][1], 1e-9 if double else 1e-3), next((fit[2] for fit in fits if fit[2] is not None), None), one)
                if due and len(due) < len(asked):
                    plans, every = _lazy(plans, kind, [t for t, *_ in found], due, asked[-1][0], penalty)
                    scale, found_penalty, _ = chosen[kind][name]
                    chosen[kind][name] = (scale, penalty or R1(found_penalty.gamma / every, every) if len(due) > 1 else found_penalty, one)
                    chosen.setdefault((*kind[:3], None), {})[name] = (scale, None, one)
        if not chosen[kind]:
            t, best = found[0][0], min(tried, key=tried.get)
            raise NotUnderstood(f"step {t}: the gradient of the {PLAYERS[kind[0]]} is that of none of the losses {', '.join(names)}, with or without a "
                                "penalty: the nearest "
                                f"is {best!r}, {tried[best]:.1%} of the gradient away. Clipped gradients, smoothed labels and losses of your own do that: "
                                "pass loss= or penalty=, or a subclass of GAN")
    options = [[(kind, name, value) for name, value in named.items()] for kind, named in chosen.items()]
    for combination in product(*options):
        by_player = [dict.fromkeys(name for kind, name, _ in combination if kind[0] == player) for player in (0, 1)]
        if any(len(of) > 1 for of in by_player):
            continue
        generator, discriminator = (next(iter(of), None) for of in by_player)
        values = {kind: value for kind, _, value in combination}
        own = next((value[2] for kind, value in values.items() if kind[0] == DISCRIMINATOR), None) or next(iter(values.values()))[2]
        theirs = next((value[2] for kind, value in values.items() if kind[0] == GENERATOR), own)
        gan.loss = own._replace(generator=theirs.generator)
        gan.loss_name = (discriminator or generator) + ("" if generator in (discriminator, None) or discriminator is None else f"/{generator}")
        found = next((value[1] for value in values.values() if value[1] is not None), None)
        gan.penalty = found
        yield _settle(plans, values)


def _candidates(gan: GAN, run: Trajectory, loss) -> dict[str, Loss]:
    if gan.own_losses:
        return {type(gan).__name__: gan.loss}
    if isinstance(loss, Loss):
        return {"custom": loss}
    if loss is not None:
        return {loss: named_loss(loss)}
    probabilities = returns_probabilities(gan, run.rows.take(torch.arange(min(4, run.n))))
    first = ["wasserstein", "hinge"] if run.dynamics.clip_weights or any(event.penalty is not None for plan in run.schedule.plans for event in plan if type(
        event) is Update) else ["hinge", "wasserstein"]
    order = ["non_saturating", "minimax", "least_squares", *first]
    return {name: LOSSES[name] for name in (["bce", "least_squares", *first] if probabilities else order)}


def _kind(plan: Plan, update: Update) -> tuple:
    """Updates of one kind have one scale and one penalty."""
    judged = [event for event in plan if type(event) is Judge]
    slope = None if update.penalty is None else judged[update.penalty].parts[0][0]
    return update.player, update.real is not None, update.fake is not None, slope


def _lazy(plans: list[Plan], kind: tuple, steps: list[int], due: list[int], last: int, penalty) -> tuple[list[Plan], int]:
    """Where a penalty comes and goes: the plans without it where it is not due, and every how many steps it is."""
    every = penalty.every if penalty is not None else due[1] - due[0] if len(due) > 1 else len(plans) if last == steps[-1] else None
    if every is None or due != [t for t in steps if t <= last and t % every == due[0] % every]:
        raise NotUnderstood(f"step {last}: a gradient penalty is paid in every step or in every m-th, but of steps {steps[0]} to {last} it was paid in "
                            f"{due}: pass penalty=gi.R1(gamma, every=m), or record more steps")
    return [plan if t % every == due[0] % every else tuple(event._replace(penalty=None) if type(event) is Update and _kind(plan, event) == kind else event
                                                           for event in plan) for t, plan in enumerate(plans)], every


def _settle(plans: list[Plan], values: dict[tuple, tuple], only: int | None = None) -> list[Plan]:
    made = {}
    for t, plan in enumerate(plans):
        if plan not in made and only in (None, t):
            made[plan] = tuple(_settled(event, values.get(_kind(plan, event))) if type(event) is Update else event for event in plan)
    return [made[plan] if only in (None, t) else plan for t, plan in enumerate(plans)]


def _settled(update: Update, value: tuple | None) -> Update:
    if value is None:
        return update
    return update._replace(scale=value[0], penalty=update.penalty if value[1] is not None else None)


def _fit(run, gan: GAN, plans: list[Plan], kind: tuple, t: int, i: int, event: Seen, penalty, known) -> tuple[float, float, object]:
    """How far the recorded gradient is from what the loss gives, as a share of it; the loss's scale; the penalty."""
    slope = {"real": R1(2.0), "mix": GradientPenalty(1.0), None: None}[kind[3]]
    wanted = torch.cat([g.flatten() for g in event.gradients.values()]).double()
    basis = []
    for scale, own in ((1.0, None), (0.0, penalty or slope)):
        if scale or own is not None:
            gan.penalty = own or known
            plan = plans[t][:i] + (plans[t][i]._replace(scale=scale, penalty=plans[t][i].penalty if own is not None else None),)
            basis.append(_gradient(run([*plans[:t], plan, *plans[t + 1:]]), t, event))
    if any(one is None for one in basis):
        return float("inf"), 1.0, None
    found = torch.linalg.lstsq(torch.stack(basis, 1), wanted[:, None]).solution.flatten()
    gap = float((wanted - torch.stack(basis, 1) @ found).norm() / wanted.norm().clamp(min=1e-300))
    if slope is None or abs(float(found[1])) * basis[1].norm() <= 1e-6 * wanted.norm():
        return gap, float(found[0]), None
    absent = abs(float(found[0])) * basis[0].norm() <= (1e-9 if gan.dtype == torch.float64 else 1e-4) * wanted.norm()
    scale, weight = 0.0 if absent else float(found[0]), _simple(float(found[1]), 1e-9 if gan.dtype == torch.float64 else 1e-3)
    if penalty is not None:
        return max(gap, abs(weight - 1)), scale, penalty
    return gap, scale, R1(2 * weight) if kind[3] == "real" else GradientPenalty(weight)


def _gradient(run: Trajectory, t: int, event: Seen) -> Tensor | None:
    """The gradient of the last update of step t's plan, in the order of the recorded one; None where the loss cannot be computed."""
    found = []
    try:
        for _ in run.walk(run.state(t), t, t + 1, watch=lambda _, player, gradients: found.append(gradients)):
            pass
    except (RuntimeError, ValueError):
        return None
    like = run.gan.state()[event.player]
    return torch.cat([found[-1].get(name, torch.zeros_like(like[name])).flatten() for name in event.gradients]).double()


def _verify(run: Trajectory, steps: list[Step]) -> float:
    """Replay every segment from its recorded start; the largest gap, as a share of how far parameters moved.

    Raises:
        NotUnderstood: naming the first step that is not what was understood.
    """
    double, worst = run.gan.dtype == torch.float64, 0.0
    kept = sorted(run.states)
    sizes = [event.mark for step in steps for event in step.events if isinstance(event, Seen)]
    typical = sorted(sizes)[len(sizes) // 2]
    for a, b in zip(kept, kept[1:]):
        seen = iter([(t, event) for t in range(a, b) for event in steps[t].events if isinstance(event, Seen)])

        def compare(t: int, player: int, gradients: dict[str, Tensor], seen=seen, a=a):
            _, event = next(seen)
            found, expected = float(fingerprint(gradients.get(next(iter(run.states[0][player]))))), event.mark
            tolerance = 1e-6 if double else 2e-3 + 1e-2 * (t - a)
            if not abs(found - expected) <= tolerance * max(expected, 0.1 * typical):
                raise NotUnderstood(f"step {t}: the gradient that the {PLAYERS[player]} took (its first parameter's) has norm {expected:.6g}, but its loss "
                                    f"as understood gives {found:.6g} "
                                    f"(ratio {expected / found if found else float('inf'):.3g}): was it clipped, or the loss, the labels or the networks "
                                    "changed? What was understood: " + _what(run))

        state = last(run.walk(run.states[a].map(Tensor.clone), a, b, watch=compare))
        gap, moved, name = _apart(run, state, run.states[b], run.states[a])
        share = gap / moved if moved else float(gap > 0)
        if not share <= (1e-6 if double else min(1e-2 * (b - a), 0.3)):
            raise NotUnderstood(f"step {a if b - a == 1 else f'{a} to {b - 1}'}: replayed from its recorded start it ends {gap:.1e} away in {name}, having "
                                f"moved {moved:.1e}, "
                                "although the gradients agree: were parameters, buffers or the average changed by hand, or does the optimiser do something "
                                "else? What was understood: " + _what(run))
        worst = max(worst, share)
    return worst


def _apart(run: Trajectory, state: State, expected: State, before: State) -> tuple[float, float, str]:
    """The largest gap of a tensor, but optimiser memory, where it is more than rounding; how far parameters moved; and the tensor's name.

    Root mean squares, without the worst hundredth of a tensor: Adam moves elements whose gradient is nearly zero by its rounding.
    """
    eps = torch.finfo(run.gan.dtype).eps
    gaps, moved, size = {}, 0.0, 0
    asleep = {player: resting(memory, (1e3 * eps) ** 2) for player, memory in zip(PLAYERS, expected[2:4])}
    for field in ("generator", "discriminator", "generator_buffers", "discriminator_buffers", "average"):
        for name, p in getattr(state, field).items():
            q = getattr(expected, field)[name]
            gap = (p - q).abs()
            if name in (noise := asleep.get(field, {})):  # gradients that are rounding noise move parameters by noise
                gap = torch.where(noise[name], 0, gap)
            rest = (gap - 8 * eps * q.abs()).clamp(min=0).flatten().sort().values[:gap.numel() - gap.numel() // 100]
            gaps[f"{field}.{name}"] = float(rest.square().mean().sqrt()) if gap.numel() else 0.0
            if field in ("generator", "discriminator"):
                moved, size = moved + float((q - getattr(before, field)[name]).square().sum()), size + gap.numel()
    moved = (moved / max(1, size)) ** 0.5
    worst = max(gaps, key=lambda name: gaps[name] if gaps[name] == gaps[name] else float("inf"))
    return gaps[worst], moved, worst


def _what(run: Trajectory) -> str:
    """What was understood, in words."""
    gan, rules = run.gan, run.dynamics
    plan = run.schedule.plans[run.schedule.which[0]]
    order = ", ".join(PLAYERS[event.player] for event in plan if type(event) is Update)
    scales = sorted({event.scale for plan in run.schedule.plans for event in plan if type(event) is Update})
    times = f" times {', '.join(f'{scale:g}' for scale in scales)}" if scales != [1.0] else ""
    words = [f"loss {gan.loss_name}{times}", f"updates of the {order} in a step",
             f"{rules.optimizers[0]} for the generator and {rules.optimizers[1]} for the discriminator"]
    words += [f"penalty {gan.penalty}"] if gan.penalty else []
    words += [f"weights clipped to ±{rules.clip_weights:g}"] if rules.clip_weights else []
    words += [f"a moving average with decay {rules.average:g}"] if rules.average is not None else []
    return "; ".join(words) + "."


def _report(run: Trajectory, seen, worst: float) -> str:
    names = {True: "averaged as well", False: "copied", None: "left as they are"}
    lines = [f"{counted(run.steps, 'step')}, {counted(len(run.schedule.epoch_starts()), 'epoch')}, "
             f"up to {run.schedule.batch_size} instances a step. {_what(run)}"]
    if run.dynamics.average is not None and run.gan.apply_generator.kept:
        lines.append(f"The average's buffers are {names[run.dynamics.average_buffers]}.")
    if seen.known.twins:
        some = sorted(seen.known.twins)
        lines.append(f"{len(some)} rows have equals ({', '.join(map(str, some[:4]))}{', ...' if len(some) > 4 else ''}): of equal rows the one drawn least "
                     "often was taken; recorder.drew(indices) would tell.")
    share = 1e3 * torch.finfo(run.gan.dtype).eps ** 2  # as `Optimizer.floor` has it
    memories = zip(PLAYERS, run.states[run.steps][2:4])
    asleep = [f"{player}.{name}" for player, memory in memories for name, noise in resting(memory, share).items() if noise.all()]
    if asleep:
        lines.append(f"The gradient of {', '.join(asleep)} is rounding noise, such as before batch normalisation: no derivative is taken of an optimiser's "
                     "steps along it.")
    lines.append(f"Replayed in {len(run.states) - 1} segments from recorded states; the largest gap is {worst:.1e} of how far parameters moved.")
    return " ".join(lines)
