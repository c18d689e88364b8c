"""The one pure function: a training step of the two players."""

import contextlib
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..game.gan import GAN, columns
from ..game.state import State
from ..tools.noise import dice
from .optimizers import both_players
from .plan import GENERATOR, Batch, Judge, Make, Order, Plan, Update, plan_of

Pull = Callable[[State], tuple[State, Tensor]]


def deterministic(device: torch.device):
    """On CUDA, convolutions that repeat bit for bit; elsewhere nothing needs doing."""
    if device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return contextlib.nullcontext()


class Linearizable:
    """What any pure function `step(state, batch, weights) -> state` has in its first order."""

    models, stacked = False, None

    def linearize(self, state: State, batch, weights: Tensor, reusable: bool = False) -> tuple[State, Pull]:
        """One step, and the function that pulls a cotangent back through it.

        Returns:
            The state after the step, and pull(cotangent) -> (cotangent before the step, (B,) its product with the derivative
            by the weights). The pull-back holds the step's graph and may be called once, or as often as wanted if `reusable`.
        """
        state, weights = state.map(lambda p: p.detach().requires_grad_()), weights.detach().requires_grad_()
        with torch.enable_grad(), deterministic(weights.device):
            after = self.step(state, batch, weights)
        inputs = [*state.tensors(), weights]
        outputs = [(i, p) for i, p in enumerate(after.tensors()) if p.requires_grad]

        def pull(cotangent: State) -> tuple[State, Tensor]:
            cotangents = cotangent.tensors()
            with deterministic(weights.device):
                *pulled, row = torch.autograd.grad([p for _, p in outputs], inputs, [cotangents[i] for i, _ in outputs], retain_graph=reusable,
                                                   allow_unused=True, materialize_grads=True)
            return state.rebuild(pulled), row

        return after.map(Tensor.detach), pull


class Dynamics(Linearizable):
    """The training step of a GAN under an optimiser, as a pure function `step(state, batch, weights) -> state`.

    Args:
        gan: the two networks and their losses.
        optimizer: such as `SGD` or `Adam`, one of torch.optim's, or a pair of them (generator's, discriminator's).
        order: "alternating" updates the discriminator, then the generator against the updated discriminator; "simultaneous" takes
            both gradients at the same parameters; "generator first" updates the generator, then the discriminator with the instances
            that were made before.
        clip_weights: clamp the discriminator's parameters to ±this after each of its updates.
        average: decay of the generator's moving average, updated after each of its updates.
        average_buffers: whether the average averages the generator's buffers as well; else it copies them; None leaves them as they are.
        models: the states hold many models at once, see `stacked`.

    Source: Terashita et al., ICLR 2021, section 2 (simultaneous); Goodfellow et al. 2014 (alternating).
    """

    def __init__(self, gan: GAN, optimizer, order: Order = "alternating", clip_weights: float | None = None, average: float | None = None,
                 average_buffers: bool | None = False, models: bool = False):
        if order not in ("alternating", "simultaneous", "generator first"):
            raise ValueError(f"unknown order {order!r}: choose 'alternating', 'simultaneous' or 'generator first'")
        if average is not None and not 0 <= average < 1:
            raise ValueError(f"a moving average keeps a share of itself, 0 or more and below 1, but average is {average!r}")
        self.gan, self.optimizers, self.order, self.models = gan, both_players(optimizer), order, models
        self.clip_weights, self.average, self.average_buffers = clip_weights, average, average_buffers
        self.networks, self._plans = (gan.apply_generator, gan.apply_discriminator), {}
        self.kernels = [{name for name, p in module.named_parameters() if p.ndim >= 2 and gan.weight_decay}
                        for module in gan.networks]

    def __reduce__(self):
        return _rebuild, (self.gan, self.optimizers, self.rules(), self.models)

    def twin(self, gan: GAN | None = None, models: bool = False) -> "Dynamics":
        """The same rules for another GAN, or for many models at once."""
        return Dynamics(gan or self.gan, self.optimizers, **self.rules(), models=models)

    def double(self) -> "Dynamics":
        """The same rules in float64, whatever the GAN's own type is."""
        if self.gan.dtype == torch.float64:
            return self
        gan = self.gan.copy()
        for network in gan.networks:
            network.double()
        return self.twin(gan)

    def rules(self) -> dict:
        """The arguments that are plain values."""
        return {name: getattr(self, name) for name in ("order", "clip_weights", "average", "average_buffers")}

    def initial(self) -> State:
        """The state that training starts from: the modules' parameters and a fresh optimiser memory."""
        return self.with_memory(self.gan.state())

    def with_memory(self, state: State) -> State:
        """The same parameters and buffers with a fresh optimiser memory, and a moving average that begins there."""
        memory = [optimizer.init(own) for optimizer, own in zip(self.optimizers, state[:2])]
        average = {} if self.average is None else state.average or state.generator | state.generator_buffers
        return state._replace(generator_memory=memory[0], discriminator_memory=memory[1], average=dict(average))

    def step(self, state: State, batch: Batch, weights: Tensor, watch: Callable | None = None) -> State:
        """The updates of both players; mutates nothing, draws nothing.

        Args:
            state: everything before the step.
            batch: what the step drew.
            weights: (B,), one per real instance: 1 present, 0 removed. The loss divides by B whatever the weights are.
            watch: called with the player and the gradients of each update.

        Returns:
            The state after the step. With grad mode enabled it is differentiable in `state` and `weights`.

        >>> import gan_influence as gi
        >>> gan = gi.models.fcgan()
        >>> dynamics = Dynamics(gan, gi.SGD(0.1), order="simultaneous")
        >>> batch = Batch(gi.data.normal_2d(train=5).train, gan.sample_latents(5, seed=0), None, (0.1, 0.1))
        >>> after = dynamics.step(dynamics.initial(), batch, torch.ones(5, dtype=torch.float64))
        >>> torch.equal(after.generator["0.weight"], dynamics.initial().generator["0.weight"])
        False
        """
        differentiable = torch.is_grad_enabled()
        x, z, own_z = map(columns, batch[:3])
        plan = batch.plan or self.plan(weights.shape[-1], len(z[0]), len(own_z[0]) if own_z else None)
        if self.models:
            x, z, own_z = (tuple(a.expand(len(weights), *a.shape) for a in part) for part in (x, z, own_z))
        rows = (slice(None),) if self.models else ()
        now, memory, buffers = list(state[:2]), list(state[2:4]), list(state[4:6])
        alias, average, number = [None, None], state.average, list(batch.number)
        fakes, judged, throws, updates = [], [], iter(batch.dice), [0, 0]
        penalised = {event.penalty for event in plan if type(event) is Update}

        def run(player: int, training: bool, *inputs, weights: Tensor | None = None):
            throw = next(throws, None) if self.networks[player].random else None
            if alias[player] is None:
                alias[player] = _leaves(now[player])
            out, later = self._apply(player, alias[player], now[player], buffers[player], inputs, training, weights, throw)
            if training:
                buffers[player] = later if differentiable else {name: buffer.detach() for name, buffer in later.items()}
            return out

        for event in plan:
            with torch.enable_grad():
                if type(event) is Make:
                    latents = [column[(*rows, slice(*event.rows))] for column in (own_z if event.own else z)]
                    fakes.append((run(GENERATOR, event.training, *latents), latents, alias[GENERATOR], sum(updates)))
                    continue
                if type(event) is Judge:
                    judged.append((*self._judge(event, run, x, fakes, batch.mix, weights, rows, len(judged) in penalised), alias[1], sum(updates)))
                    continue
            player, rate = event.player, batch.learning_rate[event.player]
            with torch.enable_grad():
                gradients = self._gradients(event, fakes, judged, rows, differentiable)
            if watch:
                watch(player, gradients)
            rate = rate[updates[player]] if isinstance(rate, tuple) else rate
            update = self.optimizers[player].update
            if self.models and not getattr(self.optimizers[player], "elementwise", False):
                update = torch.func.vmap(update, in_dims=(0, 0, 0, None, None))
            now[player], later = update(now[player], gradients, memory[player], rate, number[player])
            memory[player] = {name: later[name] for name in memory[player]}  # a state's tensors have one order
            number[player], updates[player] = number[player] + 1, updates[player] + 1
            if player != GENERATOR and self.clip_weights is not None:
                now[player] = {name: p.clamp(-self.clip_weights, self.clip_weights) for name, p in now[player].items()}
            if player == GENERATOR and self.average is not None:
                average = self._averaged(average, now[player], buffers[player])
            alias = [None, None]  # of the other player, too: its next pass may depend on its parameters through this update
        return State(*now, *memory, *buffers, average)

    @cached_property
    def stacked(self) -> "Dynamics":
        """The same dynamics for many models at once: states carry a leading model dimension M, weights are (M, B)."""
        return self.twin(models=True)

    def plan(self, *sizes) -> Plan:
        """The plan of a step that draws so much; see `plan_of`."""
        return self._plans.get(sizes) or self._plans.setdefault(sizes, plan_of(self.order, *sizes))

    def _apply(self, player: int, parameters: dict, source: dict, buffers: dict, inputs: tuple, training: bool, weights: Tensor | None, throw):
        network = self.networks[player]
        if throw is None and not self.models:
            return network(parameters, buffers, *inputs, source=source, weights=weights, training=training)
        with dice(throw, inputs[0].device):
            if not self.models:
                return network(parameters, buffers, *inputs, source=source, weights=weights, training=training)
            inputs = inputs[:network.takes]
            return torch.func.vmap(lambda p, s, b, x, *w: network(p, b, *x, source=s, weights=w[0] if w else None, training=training), randomness="same")(
                parameters, source if network.spectral else {}, buffers, inputs, *([] if weights is None else [weights]))

    def _judge(self, event: Judge, run: Callable, x: tuple, fakes: list, mix: Tensor | None, weights: Tensor, rows: tuple, penalised: bool):
        """One pass of the discriminator: (output, input, weights) of each part, and what the parts are."""
        parts = []
        for kind, *where in event.parts:
            part = rows + (slice(*where[:2]),)
            if kind == "real":
                given, count = [column[part] for column in x], weights[part]
            else:
                fake, latents, *_ = fakes[where[-1]]
                fake = fake.reshape(*fake.shape[:1 + len(rows)], *x[0].shape[1 + len(rows):])
                given, count = [fake, *latents[1:]], fake.new_ones(fake.shape[:1 + len(rows)])
                if kind == "mix":
                    real, count = x[0][part], weights[part]
                    a = mix[slice(*where[:2])].view(-1, *[1] * (real.ndim - 1 - len(rows)))
                    given = [a * real + (1 - a) * fake, *(column[part] for column in x[1:])]
            if kind == "fake" or penalised:
                given[0] = _alias(given[0])
            parts.append((given, count))
        if len(parts) > 1:
            inputs = [torch.cat(same, dim=len(rows)) for same in zip(*(given for given, _ in parts))]
            weights = torch.cat([count for _, count in parts], dim=len(rows))
        else:
            inputs, weights = parts[0]
        weighted = bool(self.networks[1].norms) and any(part[0] != "fake" for part in event.parts)
        out = run(1, event.training, *inputs, weights=weights if weighted else None)
        outs = [out]
        if len(parts) > 1:
            cut = [o.split([count.shape[-1] for _, count in parts], len(rows)) for o in columns(out)]
            outs = list(zip(*cut)) if isinstance(out, tuple) else cut[0]
        return [(o, *part) for o, part in zip(outs, parts)], event.parts, inputs[0], weighted

    def _gradients(self, event: Update, fakes: list, judged: list, rows: tuple, differentiable: bool) -> dict[str, Tensor]:
        """The gradient that a player takes: partial, so by an alias of its parameters that nothing else depends on."""
        options = {"create_graph": differentiable, "retain_graph": True, "allow_unused": True}
        real, fake = (None if at is None else judged[at[0]][0][at[1]] for at in (event.real, event.fake))
        made = None if fake is None else fakes[judged[event.fake[0]][1][event.fake[1]][-1]]
        if event.player == GENERATOR:
            parameters, losses = made[2], [self._losses(self.gan.generator_losses, (self.gan.loss.generator,), (fake[0],), (tuple(made[1]),))]
        else:
            parameters = judged[next(at for at in (event.penalty, *(event.real or ())[:1], *(event.fake or ())[:1]) if at is not None)][-2]
            on_real, on_fake = self._losses(self.gan.discriminator_losses, (self.gan.loss.real, self.gan.loss.fake), (real and real[0], fake and fake[0]),
                                            (real and tuple(real[1]), made and tuple(made[1])))
            losses = ([on_real * real[2]] if real else []) + ([on_fake] if fake else [])
        shares = [torch.full_like(loss, event.scale / loss.shape[-1]) for loss in losses]
        if event.penalty is not None:
            [(out, _, count)], _, point, weighted, *_ = judged[event.penalty]
            # With batch statistics a row's output depends on the others, of which the removed are none.
            slope, = torch.autograd.grad(columns(out)[0].flatten(len(rows)), point, count if weighted else torch.ones_like(count), create_graph=True)
            slope = slope.flatten(1 + len(rows))
            slope = slope / torch.where(count == 0, 1, count)[..., None] if weighted else slope
            losses.append(count * self.gan.penalty(slope))
            shares.append(torch.full_like(count, 1 / count.shape[-1]))
        if event.player == GENERATOR and judged[event.fake[0]][-1] != made[-1]:
            # The discriminator was updated since, by instances of these very parameters: the gradient stops at what was made, and goes on from there.
            through, = torch.autograd.grad(losses, fake[1][0], shares, **options)
            losses, shares = [made[0]], [through.reshape(made[0].shape)]
        found = torch.autograd.grad(losses, list(parameters.values()), shares, **options)
        gradients = {name: g for name, g in zip(parameters, found) if g is not None}
        decay, kernels = self.gan.weight_decay, self.kernels[event.player]
        return gradients | {name: gradients.get(name, 0) + decay * parameters[name] for name in parameters if name in kernels}

    def _losses(self, own: Callable, named: tuple, outputs: tuple, drawn: tuple):
        if not self.gan.own_losses:
            found = [None if out is None else loss(out.flatten(int(self.models))) for loss, out in zip(named, outputs)]
            return found if len(found) > 1 else found[0]
        if not self.models:
            return own(*outputs, *drawn)
        given, there = zip(*((a, i) for i, a in enumerate((*outputs, *drawn)) if a is not None))

        def one(*some):
            arguments = dict(zip(there, some))
            return own(*(arguments.get(i) for i in range(len(outputs) + len(drawn))))

        return torch.func.vmap(one)(*given)

    def _averaged(self, average: dict[str, Tensor], parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = parameters | (buffers if self.average_buffers else {})
        copied = buffers if self.average_buffers is False else {}
        return {name: self.average * own + (1 - self.average) * moved[name] if name in moved else copied.get(name, own) for name, own in average.items()}


def _rebuild(gan: GAN, optimizers: tuple, rules: dict, models: bool) -> Dynamics:
    return Dynamics(gan, optimizers, **rules, models=models)


def _leaves(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters that a player's loss can be differentiated by, and that nothing but the passes of this moment depend on."""
    if not torch.is_grad_enabled():
        return {name: p.detach().requires_grad_() for name, p in parameters.items()}
    return {name: _alias(p) for name, p in parameters.items()}


def _alias(p: Tensor) -> Tensor:
    view = p.view_as(p)  # unlike detach, a view carries a forward-mode tangent along
    return view if view.requires_grad else view.requires_grad_()
