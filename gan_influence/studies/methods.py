"""Attribution methods side by side: what each says of every training instance of a recorded run, signed so that larger means more harmful."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..game.state import State
from ..metrics.discriminator import DiscriminatorLoss
from ..readings import cleansing
from ..readings.influence import harmfulness, influence, metric_gradient
from ..tools.streams import torch_stream
from ..training.plan import DISCRIMINATOR
from ..training.trajectory import Trajectory
from .released import Question, released_2021, released_2025, released_aid, swept


def exact(question: Question) -> Tensor:
    """This package's: the metric pulled back through everything that training changes."""
    return harmfulness(influence(question.run, question.metric, question.last_epochs), question.metric)


def moments_constant(question: Question) -> Tensor:
    """Exact but for the optimisers' memory, from which nothing is pulled back; the same as exact under SGD without momentum."""
    run = question.run

    def pull(t: int, state: State, after: State, u: State) -> tuple[State, Tensor]:
        before, row = run.dynamics.linearize(state, run.batch(t), run.weights(t))[1](u)
        forgotten = [{name: torch.zeros_like(p) for name, p in memory.items()} for memory in before[2:4]]
        return before._replace(generator_memory=forgotten[0], discriminator_memory=forgotten[1]), row

    return swept(question, metric_gradient(run, question.metric), pull)


def discriminator_loss(question: Question) -> Tensor:
    """Exact influence on the discriminator's loss on held-out data instead of the metric: the baseline of the paper of 2021."""
    loss = DiscriminatorLoss(question.held_out, question.metric.latents)
    return harmfulness(influence(question.run, loss, question.last_epochs), loss)


def tracin(question: Question) -> Tensor:
    """Minus Σ η/B·⟨∇ℓ_j, ∇L⟩ over the window's steps that draw j, both by the discriminator: ℓ_j its loss on j, L its mean loss on held-out data.

    The networks evaluate, so that batch statistics couple no instances. Libraries for data attribution (captum's TracInCP, dattri's
    AttributionTask) take one model with a loss and checkpoints of it, and no second player whose samples a metric judges: of a
    GAN they could say this and what `trak` says, and no more.

    Source: Pruthi et al., NeurIPS 2020.
    """
    run, start, scores = question.run, question.run.window(question.last_epochs), torch.zeros(question.run.n, dtype=torch.float64)
    for t, state in zip(range(start, run.steps), run.walk(run.state(start), start, run.steps)):
        indices, rate = run.schedule.indices(t), run.batch(t).learning_rate[DISCRIMINATOR]
        products = per_sample_gradients(run, state, run.rows.take(indices)[0]) @ _held_out_gradient(question, state)
        scores.index_add_(0, indices, products.cpu() * (-rate / len(indices)))
    return scores


def trak(question: Question, dimensions: int = 256, damping: float = 1e-3) -> Tensor:
    """Minus φᵀ(ΦᵀΦ + λI)⁻¹φ_j at the end of the run, for the discriminator's loss.

    φ_j is its gradient on j in a random projection, φ that on held-out data, λ `damping` times the mean eigenvalue of ΦᵀΦ.
    One model, where Park et al. average many, and the loss itself for the model's output.

    Source: Park et al., ICML 2023 (TRAK).
    """
    gradients = per_sample_gradients(question.run, question.run.final, question.run.rows.columns[0])
    projection = torch.randn(gradients.shape[1], dimensions, generator=torch_stream("directions", question.seed), dtype=torch.float64).to(gradients)
    features, target = gradients @ projection, _held_out_gradient(question, question.run.final) @ projection
    gram = features.T @ features
    gram.diagonal().add_(damping * gram.diagonal().mean())
    return -(features @ torch.linalg.solve(gram, target)).cpu()


def gradient_norm(question: Question) -> Tensor:
    """How large the gradient of the discriminator's loss on an instance is at the end of the run."""
    return per_sample_gradients(question.run, question.run.final, question.run.rows.columns[0]).norm(dim=1).cpu()


def isolation_forest(question: Question) -> Tensor:
    """How isolated an instance is from all others, in the metric's features where it has some."""
    return cleansing.isolation_forest(question.run.rows.columns[0], question.seed, getattr(question.metric, "features", None))


@torch.no_grad()
def nearest_generated(question: Question) -> Tensor:
    """How far an instance is from the nearest of the metric's generated ones, in its features where it has some."""
    run, features = question.run, getattr(question.metric, "features", torch.nn.Identity())
    x, fake = (torch.cat([features(part).flatten(1).double() for part in all_.split(1_000)])
               for all_ in (run.rows.columns[0], run.gan.generate(run.final, question.metric.latents)))
    return torch.cat([torch.cdist(part, fake).min(1).values for part in x.split(1_000)]).cpu()


def random(question: Question) -> Tensor:
    """Numbers that know nothing."""
    return cleansing.random_scores(question.run.n, question.seed)


#: Every method that the board records, by the name it has there: question -> (n,) float64 on the CPU.
METHODS: dict[str, Callable[[Question], Tensor]] = {
    "exact": exact, "moments constant": moments_constant, "released 2021": released_2021, "released 2025": released_2025,
    "released 2025, damped": lambda question: released_2025(question, scale=.01), "released 2025, AID": released_aid,
    "AID, summed": lambda question: released_aid(question, summed=True), "discriminator loss": discriminator_loss, "TracIn": tracin, "TRAK": trak,
    "gradient norm": gradient_norm, "isolation forest": isolation_forest, "nearest generated": nearest_generated, "random": random}


def per_sample_gradients(run: Trajectory, state: State, x: Tensor, chunk: int = 250) -> Tensor:
    """The gradient of the discriminator's loss on every instance by its parameters, (m, parameters) float64; all of its layers evaluate."""
    def loss(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        return run.gan.loss.real(run.gan.apply_discriminator(parameters, state.discriminator_buffers, one[None], training=False)[0].flatten())[0]

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    return torch.cat([torch.cat([g.flatten(1).double() for g in each(state.discriminator, part).values()], 1) for part in x.split(chunk)])


def _held_out_gradient(question: Question, state: State) -> Tensor:
    loss, state = DiscriminatorLoss(question.held_out, question.metric.latents), state.map(lambda p: p.detach().requires_grad_())
    gradient = torch.autograd.grad(loss(question.run.gan, state), list(state.discriminator.values()))
    return torch.cat([g.flatten().double() for g in gradient])
