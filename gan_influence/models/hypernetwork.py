"""A network that makes another module's weights from a data set, and what it pays for not agreeing with itself."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..tools.noise import dice

TRAINED = {"running_mean", "running_var", "num_batches_tracked", "_u", "_v", "weight_u", "weight_v"}  #: buffers that layers write while they train
Weights = dict[str, Tensor]


class Hypernetwork(nn.Module):
    """Makes the weights of any module from a data set, whatever the order of its instances.

    Per instance an MLP; the mean over instances; if asked for, an MLP of that mean; then one linear head for each of the module's
    parameters. Heads begin small, with the module's own weights as their bias: an untrained hypernetwork makes nearly the module it was given.

    Args:
        target: the module; a copy of it is called with weights that are made, and its own are a start.
        width: numbers of one instance, when flattened.
        hidden: widths of the MLP per instance.
        outer: widths of the MLP after the mean; without one, H(X) is the mean of its H(x_i), and knows nothing like the square of a mean.
        rank: of the heads; None for full ones, which have hidden width × weights numbers, millions for a network of any size.
        activation: between layers; a smooth one where influence is to be read off.
        scale: of the heads at the start, beside those of an ordinary linear layer.
        seed: initialises without touching torch's global generator.

    Calling it with instances (n, ...) gives {name: tensor} in the target's shapes; with `weights` (n,), as if an instance of weight 0 were not there.
    The mean is blind to n, so a correction such as n/(n − 1) holds for the n it was trained with.

    Raises:
        ValueError: for a target without parameters, or with layers that write buffers in training; for instances of another width, or none.

    Source: arXiv 2405.13977 (positional per-sample network, mean pool, heads; reconstructed from its released library).

    >>> module = nn.Linear(3, 2)
    >>> hyper, x = Hypernetwork(module, width=2, hidden=(8, 8), outer=(8,)), torch.randn(50, 2)
    >>> hyper.call(hyper(x), torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(self, target: nn.Module, width: int, hidden: Sequence[int] = (8, 8, 8), outer: Sequence[int] = (), rank: int | None = None,
                 activation: type[nn.Module] = nn.ReLU, scale: float = 0.1, seed: int = 0):
        super().__init__()
        own = dict(target.named_parameters())
        if not own:
            raise ValueError(f"a hypernetwork makes a module's parameters, but {type(target).__name__} has none")
        if written := [name for name, _ in target.named_buffers() if name.rpartition(".")[2] in TRAINED]:
            raise ValueError(f"a hypernetwork makes parameters, and the module it makes is a function of them alone, but {type(target).__name__} trains "
                             f"the buffer {written[0]!r}: take layers without a memory, such as LayerNorm or GroupNorm")
        self.__dict__["target"] = copy.deepcopy(target).requires_grad_(False)  # no submodule: its own weights are not trained
        self.width, self.shapes = width, {name: p.shape for name, p in own.items()}
        self.dtype = next(iter(own.values())).dtype

        def mlp(widths: Sequence[int]) -> nn.Sequential:
            return nn.Sequential(*[layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), activation())])

        with dice(seed, torch.device("cpu")):
            self.each, self.outer = mlp((width, *hidden)), mlp((hidden[-1], *outer))
            q, last = (*hidden, *outer)[-1], {name: p.numel() for name, p in own.items()}
            self.heads = nn.ModuleList(nn.Linear(q, n) if rank is None or rank >= n else nn.Sequential(nn.Linear(q, rank, bias=False), nn.Linear(rank, n))
                                       for n in last.values())
        with torch.no_grad():
            for head, p in zip(self.heads, own.values()):
                end = head if isinstance(head, nn.Linear) else head[-1]
                end.weight.mul_(scale)
                end.bias.copy_(p.detach().flatten())
        self.to(self.dtype)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Weights:
        rows = x.flatten(1)
        if not len(rows) or rows.shape[1] != self.width:
            raise ValueError(f"this hypernetwork reads instances of {self.width} numbers, one or more of them, but got shape {tuple(x.shape)}: "
                             f"make another with width={rows.shape[1] if len(rows) else '...'}")
        features = self.each(rows.to(self.dtype))
        pooled = features.mean(0) if weights is None else weights @ features / weights.sum()
        pooled = self.outer(pooled)
        return {name: head(pooled).view(shape) for (name, shape), head in zip(self.shapes.items(), self.heads)}

    def call(self, made: Weights, *inputs) -> Tensor:
        """The target with weights that were made."""
        return functional_call(self.target, made, inputs)


def autophagy(estimate: Callable[[Tensor], Weights], sample: Callable[[Weights], Tensor], x: Tensor, resamples: int = 2) -> Tensor:
    """Autophagy penalty: how far an estimator is from finding again, on average, what it said, in samples of what it said.

        ‖ H(X) − E H(Y) ‖²,   Y drawn from the model with weights H(X)

    Args:
        estimate: H, instances → {name: tensor}; one tensor will do.
        sample: weights → as many instances, drawn anew at every call and differentiable in the weights.
        x: instances.
        resamples: how often Y is drawn. With 2 or more, the mean over pairs of different draws of ⟨H(X) − H(Y_r), H(X) − H(Y_s)⟩, which is
            unbiased. With 1, the plain square, which the spread of H(Y) is added to: it also rewards an estimator that says always the same.

    Returns:
        A scalar, which single draws can make negative for 2 or more resamples.

    Source: arXiv 2405.13977 (the constraint; norm, number of draws and gradients are reconstructed, pairs are not in the paper).

    >>> mean = lambda x: x.mean(0)
    >>> float(autophagy(mean, lambda m: m + torch.tensor([[-1.0], [1.0]]), torch.tensor([[3.0], [5.0]])))  # the mean finds itself again
    0.0
    """
    def flat(made) -> Tensor:
        return torch.cat([p.flatten() for p in made.values()]) if isinstance(made, dict) else made.flatten()

    said = estimate(x)
    gaps = torch.stack([flat(said) - flat(estimate(sample(said))) for _ in range(resamples)])
    if resamples == 1:
        return gaps.square().sum()
    return (gaps.sum(0).square().sum() - gaps.square().sum()) / (resamples * (resamples - 1))
