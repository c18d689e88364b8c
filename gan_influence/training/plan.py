"""What happens within one step, in its order: passes through the two networks, and updates of the two players."""

from typing import Literal, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_map

Order = Literal["alternating", "simultaneous", "generator first"]
GENERATOR, DISCRIMINATOR = 0, 1
PLAYERS = "generator", "discriminator"


class Make(NamedTuple):
    """The generator makes instances of rows of the step's latents."""

    rows: tuple[int, int]
    own: bool = False  #: of the generator's own latents
    training: bool = True


class Judge(NamedTuple):
    """The discriminator judges rows in one pass: parts are ("real", first, last), ("fake", i, of the i-th made) or ("mix", first, last, i)."""

    parts: tuple[tuple, ...]
    training: bool = True


class Update(NamedTuple):
    """A player updates by its losses of earlier judgements: positions (judgement, part), None for none."""

    player: int
    real: tuple[int, int] | None = None
    fake: tuple[int, int] | None = None
    penalty: int | None = None  #: the judgement whose inputs' gradient is penalised
    scale: float = 1.0  #: of the losses, but not of the penalty


Plan = tuple[Make | Judge | Update, ...]


class Batch(NamedTuple):
    """What one step drew: everything random about it. Data and latents of several columns, such as labels, are tuples of tensors."""

    x: Tensor | tuple  #: real instances of all of the step's updates together, (B, ...)
    z: Tensor | tuple  #: latents, (B, ...)
    generator_z: Tensor | tuple | None  #: the generator's own latents; None when both players use `z`
    learning_rate: tuple  #: the generator's and the discriminator's (0-d tensors serve as well; tuples where a player updates several times)
    number: tuple = (0, 0)  #: how often the generator and the discriminator were updated before
    plan: Plan | None = None  #: None: what the order of the dynamics says
    dice: tuple = ()  #: for each pass that draws random numbers, a seed or a state of torch's generator
    mix: Tensor | None = None  #: a of a gradient penalty's points a·x + (1 − a)·fake, (B,)

    def double(self) -> "Batch":
        """The same in float64."""
        drawn = tree_map(lambda a: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a, self._replace(plan=None))
        return drawn._replace(plan=self.plan)


def plan_of(order: Order, rows: int, latents: int, own: int | None, updates: int = 1, penalty: str | None = None) -> Plan:
    """The plan of one step.

    Args:
        order: "alternating": the discriminator's updates, then the generator's against the updated discriminator. "simultaneous": both
            gradients at the same parameters. "generator first": the generator's, then the discriminator's with the instances that were made before.
        rows, latents: real instances and latents in all updates together.
        own: the generator's own latents; None where it uses the last of the discriminator's.
        updates: of the discriminator.
        penalty: "real" or "mix" where one is due.
    """
    plan = []

    def add(event) -> int:
        plan.append(event)
        return sum(type(one) is type(event) for one in plan) - 1

    def discriminator(k: int, fake: int | None = None) -> tuple[int, int, Update]:
        a, b = k * rows // updates, (k + 1) * rows // updates
        fake = add(Make((k * latents // updates, (k + 1) * latents // updates))) if fake is None else fake
        on_real, on_fake = add(Judge((("real", a, b),))), add(Judge((("fake", fake),)))
        at = {None: None, "real": on_real}[penalty] if penalty != "mix" else add(Judge((("mix", a, b, fake),)))
        return fake, on_fake, Update(DISCRIMINATOR, (on_real, 0), (on_fake, 0), at)

    if order == "generator first":
        first = add(Make((0, own), own=True) if own else Make((0, latents // updates)))
        add(Update(GENERATOR, fake=(add(Judge((("fake", first),))), 0)))
    for k in range(updates):
        fake, on_fake, update = discriminator(k, first if order == "generator first" and not own and not k else None)
        last = k == updates - 1 and order != "generator first"
        if last and order == "alternating":
            add(update)
        if last and own:
            fake = add(Make((0, own), own=True))
        if last and (own or order == "alternating"):
            on_fake = add(Judge((("fake", fake),)))
        if not (last and order == "alternating"):
            add(update)
        if last:
            add(Update(GENERATOR, fake=(on_fake, 0)))
    return tuple(plan)
