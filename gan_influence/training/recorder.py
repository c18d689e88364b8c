"""A recorder that watches a training loop of somebody else's, through torch's own hooks."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from ..game.gan import GAN
from ..game.state import State
from ..tools.noise import generator_state
from .known import Known, NotUnderstood, Pass, Seen, Shelf, Step, fingerprint
from .optimizers import both_players
from .plan import DISCRIMINATOR, GENERATOR, PLAYERS
from .rows import Rows
from .trajectory import Trajectory
from .understanding import understand

QUIET = 4  #: passes in training mode without a random number, after which a network is not asked again
EARLY = 4  #: steps after each update of which parameters are looked at for changes by hand
LAZY = 20  #: updates whose gradients are kept where a penalty may come and go
KEPT, KEPT_BYTES = 32, 64 * 2**20  #: states that are kept before every other one is let go; as far as they fit, but 8
PENDING = 32 * 2**20  #: bytes of batches that wait to be recognised together


class Recorder:
    """Watches a training loop, and makes a run of it.

    One line before the loop, one after it; the loop stays as it is. What it takes for granted it checks: `trajectory` replays every
    kept segment and compares. It is a context manager too, which stops watching at its end.

    Args:
        generator, discriminator: the modules that the loop calls.
        optimizer_g, optimizer_d: their torch.optim optimisers: SGD, Adam, AdamW or RMSprop.
        x: training set as the discriminator sees it: a tensor, a tuple of tensors, or a data set that gives one instance for an index.
        average: the module that holds the generator's moving average, where the loop has one.
        stride: steps between kept states; by default it doubles whenever 32 states are kept.

    Raises:
        NotUnderstood: for optimisers that the engine has no counterpart of.

    >>> import gan_influence as gi
    >>> G, D, x = nn.Linear(2, 3), nn.Linear(3, 1), torch.randn(8, 3)
    >>> opt_g, opt_d = torch.optim.Adam(G.parameters(), 1e-2), torch.optim.Adam(D.parameters(), 1e-2)
    >>> recorder = Recorder(G, D, opt_g, opt_d, x)
    >>> for batch in x.split(4):
    ...     fake = G(torch.randn(4, 2))
    ...     opt_d.zero_grad()
    ...     (nn.functional.softplus(-D(batch)).mean() + nn.functional.softplus(D(fake.detach())).mean()).backward()
    ...     opt_d.step()
    ...     opt_g.zero_grad()
    ...     nn.functional.softplus(-D(fake)).mean().backward()
    ...     opt_g.step()
    >>> recorder.trajectory().steps
    2
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, optimizer_g, optimizer_d, x, average: nn.Module | None = None,
                 stride: int | None = None):
        self.players, self.optimizers, self.average = (generator, discriminator), (optimizer_g, optimizer_d), average
        like = next(generator.parameters())
        self.given, self.rows, self.problem = x, Rows(x, like.device, like.dtype, anywhere=True), None
        try:
            self.values = both_players((optimizer_g, optimizer_d))
        except ValueError as error:
            raise NotUnderstood(str(error)) from error
        self.settings = [self._settings(optimizer) for optimizer in self.optimizers]
        self.parameters = [self._trained(player) for player in (GENERATOR, DISCRIMINATOR)]
        self.layers = [list(module.modules()) for module in self.players]
        self.copies, self.modes = [None, None], [None, None]
        self.known, self.shelf, self.alive = Known(self.rows), Shelf(), []
        self.stride, self.thin = stride or 1, stride is None
        self.states: dict[int, State] = {}
        self.steps, self.pending, self.told, self.bytes = [], Step(), None, 0
        self.quiet, self.rough, self.compared = [0, 0], (), set()
        self.heads = [next(iter(own.values())) for own in self.parameters]  # all that a player does goes through its first parameter
        self.captured, self.first, self.closed, self.counts, self.updated, self.clip = {}, None, False, (0, 0), {}, None
        self.place = {id(one): player for pair in (self.players, self.optimizers) for player, one in enumerate(pair)}
        self.young = True
        self.handles = [module.register_forward_pre_hook(self._before) for module in self.players]
        self.handles += [module.register_forward_hook(self._after) for module in self.players]
        self.handles += [optimizer.register_step_pre_hook(self._update) for optimizer in self.optimizers]
        self.watched = [optimizer.register_step_post_hook(self._updated) for optimizer in self.optimizers]

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def __deepcopy__(self, memo) -> "Recorder":
        return self  # a copied module's hooks come here too, and are not listened to

    def drew(self, indices) -> None:
        """Say which rows the next real batch is: where rows repeat, or were changed (flipped, cropped) on the way."""
        self.told = torch.as_tensor(indices).detach().cpu().to(torch.int64)

    def stop(self) -> None:
        """Stop watching; the last state is the modules' now."""
        if self.handles:
            for handle in self.handles:
                handle.remove()
            self.handles = []
            self._unwatch()
            if self.pending.updates:
                self.steps.append(self.pending)
            elif self.steps:
                self.steps[-1].events += self.pending.events  # passes after the last update change buffers too
            self.states[len(self.steps)] = self._state()

    def trajectory(self, loss=None, penalty=None, gan=None) -> Trajectory:
        """The run, replayed and compared.

        Args:
            loss: a name or a `Loss`, where it is not one that can be recognised.
            penalty: an `R1` or a `GradientPenalty`, likewise.
            gan: a subclass of GAN whose losses are overridden, for losses that need labels or several outputs.

        Returns:
            A Trajectory whose `report` says what was understood.

        Raises:
            NotUnderstood: naming the first step that is not what was understood, and what was seen there.
        """
        self.stop()
        if not any(step.updates for step in self.steps):
            raise NotUnderstood("a recorded loop calls both modules and steps both optimisers, but no update was seen: make the recorder before the loop, of "
                                "the very modules and optimisers that the loop uses")
        if self.problem is None:
            self._recognise(self.steps)
        if self.problem is not None:
            raise self.problem
        return understand(self, loss, penalty, gan or GAN)

    # What the hooks write down. They never stop the loop: a problem is told by `trajectory`.

    def _refuse(self, what: str) -> None:
        self.problem = self.problem or NotUnderstood(f"step {len(self.steps)}: {what}")

    def _recognise(self, steps: list[Step]) -> None:
        try:
            self.known.recognise(steps)
        except NotUnderstood as error:
            self.problem = error

    def _before(self, module: nn.Module, inputs: tuple) -> None:
        player = self.place.get(id(module))  # a copy of a player carries its hooks along, and has no place
        if player is None or self.problem is not None or not (self.closed or self.young):
            return
        if not self.states:
            self.counts = tuple(map(self._count, self.optimizers))
            self._keep(0)
        elif self.closed:
            self.steps.append(self.pending)
            self.pending, self.closed, self.rough, self.alive = Step(), False, (), []
            if self.bytes > PENDING:
                self._recognise(self.steps[:-1])
                self.bytes = 0
            if len(self.steps) % self.stride == 0:
                self._keep(len(self.steps))
        if module.training and self.copies[player] is None:
            self._copy(player)
        for other in list(self.updated):
            self._touched(other, self.updated.pop(other))
        self.throw = generator_state(self.rows.device) if self.quiet[player] < QUIET else None
        # A network that draws nothing in its first passes is not asked again: the replay would tell. So for changes by hand.
        self.young = self.throw is not None or min(self.quiet) < QUIET or len(self.steps) < EARLY
        if not self.young:
            self._unwatch()

    def _after(self, module: nn.Module, inputs: tuple, output) -> None:
        player = self.place.get(id(module))
        if player is None or self.problem is not None:
            return
        if not inputs or not all([isinstance(a, Tensor) for a in inputs]):
            return self._refuse("a network is recorded with tensors as its arguments, in order, but was called with "
                                f"{[type(a).__name__ for a in inputs] or 'others, by name'}: call it with tensors alone, in order")
        pending, training, throw = self.pending, module.training, self.throw if self.young else None
        if not pending.updates and len(self.steps) % self.stride == 0:
            mode = [layer.training for layer in self.layers[player]]
            if training and mode != self.modes[player] or not training and any(mode):
                return self._refuse("a network is trained in one mode, but some layers of this one were switched between train and eval since its first "
                                    "pass: set them before the loop")
        if throw is not None and torch.equal(throw, generator_state(self.rows.device)):
            throw = None
            self.quiet[player] += training
        if player == GENERATOR:
            given, event = [self.shelf.copy("latents", a) for a in inputs], Pass(player, training, False, throw)
            pending.made.append(self.shelf.copy("made", output))
            self.alive.append(output.detach())  # known by its address while the step lasts
        else:
            first, which, told = inputs[0], None, None
            for i in range(len(self.alive) - 1, -1, -1):
                if self.alive[i].data_ptr() == first.data_ptr() and self.alive[i].numel() == first.numel():
                    which = i
                    break
            else:
                told, self.told = self.told, None
            given = [self.shelf.copy("judged", a) if i or which is None else None for i, a in enumerate(inputs)]
            event = Pass(player, training, first.requires_grad, throw, which, told)
            self.rough += ((which is not None, event.wants_grad),)
        event.inputs = given
        pending.events.append(event)
        self.bytes += 2 * inputs[0].nbytes

    def _update(self, optimizer, *_) -> None:
        if self.problem is not None:
            return
        player, pending = self.place[id(optimizer)], self.pending
        self.first = player if self.first is None else self.first
        if len(self.steps) % self.stride == 0 and self._settings(optimizer) != self.settings[player]:
            return self._refuse("an optimiser keeps its settings, and only its learning rate changes, but others were changed: leave them as they were")
        rough, whole = (player, self.rough), None
        if self.captured.setdefault(rough, 0) < (LAZY if any([wants and not made for made, wants in self.rough]) else 2):
            self.captured[rough] += 1
            self.compared.add(len(self.steps))
            whole = {name: p.grad.detach().clone() for name, p in self.parameters[player].items() if p.grad is not None}
        pending.events.append(Seen(player, optimizer.param_groups[0]["lr"], fingerprint(self.heads[player].grad, self.shelf), whole))
        pending.updates += 1
        self.closed = self.closed or player != self.first

    def _unwatch(self) -> None:
        while self.watched:
            self.watched.pop().remove()

    def _updated(self, optimizer, *_) -> None:
        if len(self.steps) < EARLY:
            player = self.place[id(optimizer)]
            self.updated[player] = {name: p.detach().clone() for name, p in self.parameters[player].items()}

    def _touched(self, player: int, expected: dict[str, Tensor]) -> None:
        """Were the parameters changed since their update? A clamp is understood."""
        own = self.parameters[player]
        if all(torch.equal(own[name], p) for name, p in expected.items()):
            return
        limit = max(float(p.detach().abs().max()) for p in own.values())
        if player == GENERATOR or not all(torch.equal(own[name], p.clamp(-limit, limit)) for name, p in expected.items()):
            return self._refuse("between its updates a player's parameters stay as they are, or the discriminator's are clipped, but those of the "
                                f"{PLAYERS[player]} were changed by hand: record up to there, or train without it")
        self.clip = limit

    def _keep(self, t: int) -> None:
        self.states[t] = self._state()
        if self.thin and len(self.states) - len(self.compared) > max(8, min(KEPT, KEPT_BYTES // self.states[t].nbytes)):
            self.stride *= 2
            self.states = {t: state for t, state in self.states.items() if t % self.stride == 0 or t in self.compared}

    def _state(self) -> State:
        parameters = [{name: p.detach().clone() for name, p in own.items()} for own in self.parameters]
        memory = [self._memory(player) for player in (GENERATOR, DISCRIMINATOR)]
        buffers = [{name: b.detach().clone() for name, b in module.named_buffers() if b.is_floating_point()} for module in self.players]
        average = {} if self.average is None else {name.removeprefix("module."): a.detach().clone() for name, a in self.average.state_dict().items()
                                                   if a.is_floating_point()}
        return State(*parameters, *memory, *buffers, average)

    def _memory(self, player: int) -> dict[str, Tensor]:
        memory = self.values[player].init(self.parameters[player])
        for name, p in self.parameters[player].items():
            for kind in self.values[player].kinds:
                if (found := self.optimizers[player].state.get(p, {}).get(kind)) is not None:
                    memory[f"{kind}.{name}"] = found.detach().clone()
        return memory

    def _trained(self, player: int) -> dict[str, Tensor]:
        """What the optimiser holds of a player; the rest are constants."""
        held = {id(p) for group in self.optimizers[player].param_groups for p in group["params"]}
        own = {name: p for name, p in self.players[player].named_parameters() if id(p) in held and p.requires_grad}
        if not own or len(held) > sum(id(p) in held for p in self.players[player].parameters()):
            raise NotUnderstood(f"each optimiser holds its own player's parameters, but that of the {PLAYERS[player]} holds "
                                f"{'none of its' if not own else 'others too'}: pass the generator's optimiser first")
        return own

    def _copy(self, player: int) -> None:
        """What the engine will compute with: the module in the mode it trains in, without these hooks; what is not trained is constant."""
        copy, ids = deepcopy(self.players[player]), {handle.id for handle in self.handles}
        for hooks in (copy._forward_pre_hooks, copy._forward_hooks):
            for key in ids & set(hooks):
                del hooks[key]
        for name, p in copy.named_parameters():
            p.requires_grad_(name in self.parameters[player])
        self.copies[player], self.modes[player] = copy, [layer.training for layer in self.layers[player]]

    @staticmethod
    def _settings(optimizer) -> list[dict]:
        return [{key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")} for group in optimizer.param_groups]

    @staticmethod
    def _count(optimizer) -> int:
        counts = [int(state["step"]) if "step" in state else 1 for state in optimizer.state.values() if state]
        return max(counts, default=0)
