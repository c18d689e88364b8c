"""Inception score and Fréchet distance: metrics on what a network sees in generated images, in memory that does not grow with the sample."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..game.gan import GAN
from ..game.state import State

Network = nn.Module | Callable[[Tensor], Tensor]


class LogInceptionScore:
    """Logarithm of the Inception score: how sure a classifier is of each image, and how evenly it meets all classes.

        V = mean_i KL( p(y|G(z_i)) ‖ mean_k p(y|G(z_k)) )

    Args:
        classifier: module in eval mode, or function, mapping images (n, ...) to logits (n, classes); it gets the images as they are generated.
        latents: fixed latents, (n, latent_dim); all of them are one split.
        chunk: images in memory at once; the gradient recomputes one chunk after another.

    Calling it gives nats, between 0 and log(classes), float64; higher is better. Only logarithms of probabilities are
    added up, so a probability that underflows costs nothing.

    Raises:
        ValueError: for a classifier in training mode, for another output than logits, for a NaN or infinite logit.

    Source: Salimans et al. 2016 (Inception score); Terashita et al., ICLR 2021, section 5 (its logarithm, one split).

    >>> gan = GAN(nn.Linear(2, 2), nn.Linear(2, 1), latent_dim=2)
    >>> state = gan.state()._replace(generator={"weight": 1e4 * torch.eye(2), "bias": torch.zeros(2)})
    >>> one_of_each = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # to a classifier that takes an image for its logits
    >>> round(LogInceptionScore(nn.Identity(), one_of_each)(gan, state).item(), 4)  # log 2
    0.6931
    """

    name = "log Inception score"
    higher_is_better = True

    def __init__(self, classifier: Network, latents: Tensor, chunk: int = 250):
        self.classifier, self.latents, self.chunk = classifier, latents, chunk
        _refuse_training_mode(classifier)

    def __call__(self, gan: GAN, state: State) -> Tensor:
        parts = _chunks(_log_probability_sums, self.classifier, gan, state, self.latents, self.chunk)
        log_sums, negative_entropies = zip(*parts)
        log_average = torch.stack(log_sums).logsumexp(0) - math.log(len(self.latents))
        return sum(negative_entropies) / len(self.latents) - (log_average.exp() * log_average).sum()


class InceptionScore(LogInceptionScore):
    """Inception score: the exponential of `LogInceptionScore`, which documents arguments and errors.

        V = exp mean_i KL( p(y|G(z_i)) ‖ mean_k p(y|G(z_k)) )

    Calling it gives a number between 1 and the number of classes; higher is better.

    Source: Salimans et al. 2016; Terashita et al., ICLR 2021, section 5 (one split).
    """

    name = "Inception score"

    def __call__(self, gan: GAN, state: State) -> Tensor:
        return super().__call__(gan, state).exp()


class FrechetDistance:
    """Fréchet distance between Gaussians fitted to the features of real and of generated images.

        V = ‖μ_real − μ‖² + tr( A + B − 2(AB)^½ )

    μ and B are mean and unbiased covariance of the generated images' features, μ_real and A of the real ones'.

    Args:
        features: module in eval mode, one of its methods, or function, mapping images (n, ...) to features (n, d); it gets the
            images as they are. FID is this with an Inception network.
        real: held-out images, (m, ...), m > d.
        latents: fixed latents, (n, latent_dim), n > d.
        chunk: images in memory at once; the gradient recomputes one chunk after another.

    Calling it gives squared feature units, float64; lower is better. Its gradient is exact also where eigenvalues coincide.

    Raises:
        ValueError: for a feature network in training mode, too few images or latents, NaN or infinite features.

    Source: Heusel et al. 2017 (FID); Dowson and Landau 1982 (the distance); Terashita et al., ICLR 2021, section 5.

    >>> gan = GAN(nn.Linear(2, 2), nn.Linear(2, 1), latent_dim=2)
    >>> z = gan.sample_latents(50, seed=0)
    >>> state = gan.state()._replace(generator={"weight": torch.eye(2), "bias": torch.tensor([3.0, 4.0])})
    >>> round(FrechetDistance(nn.Identity(), z, z)(gan, state).item(), 4)  # the same points, moved by (3, 4)
    25.0
    """

    name = "Fréchet distance"
    higher_is_better = False

    def __init__(self, features: Network, real: Tensor, latents: Tensor, chunk: int = 250):
        self.features, self.latents, self.chunk = features, latents, chunk
        _refuse_training_mode(features)
        with torch.no_grad():
            self.mean, covariance = _merge(_moments(_apply(features, images, "real images")) for images in real.split(chunk))
        d = len(self.mean)
        for what, n in (("real images", len(real)), ("latents", len(latents))):
            if n <= d:
                raise ValueError(f"a covariance of {d} features takes at least {d + 1} samples, but there are {n} {what}: "
                                 "take more of them, or a network with fewer features")
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        self.trace, self.root = covariance.trace(), eigenvalues.clamp(min=0).sqrt()[:, None] * vectors.T  # rootᵀ·root = A

    def __call__(self, gan: GAN, state: State) -> Tensor:
        mean, covariance = _merge(_chunks(_moments, self.features, gan, state, self.latents, self.chunk))
        real_mean, trace, root = (a.to(mean) for a in (self.mean, self.trace, self.root))
        with torch.no_grad():
            transport, trace_of_root = _transport(root, covariance.detach())
        # tr (AB)^½ = min over symmetric T > 0 of ½ tr(TB + T⁻¹A), reached by the optimal transport map T with T·B·T = A. At a
        # minimum only the explicit B counts, so a constant T gives value and gradient, and no eigenvector is differentiated.
        return ((mean - real_mean) ** 2).sum() + trace + covariance.trace() - (transport * covariance).sum() - trace_of_root


def _transport(root: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The map T with T·B·T = A = rootᵀ·root, and tr (AB)^½. Directions without variance in B, where the root has no derivative, are left out."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    present = eigenvalues > eigenvalues.max() * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    scale, vectors = eigenvalues[present].sqrt(), vectors[:, present]
    # Singular values of A^½·B^½ rather than roots of the eigenvalues of A·B: half of the digits would be lost with those.
    _, singular, right = torch.linalg.svd(root @ (vectors * scale), full_matrices=False)
    half = (vectors / scale) @ right.T
    return (half * singular) @ half.T, singular.sum()


def _chunks(function: Callable, network: Network, gan: GAN, state: State, latents: Tensor, chunk: int) -> Iterator:
    """function(network(generated images)) of one chunk of latents after another; only its result and the latents are kept for the gradient."""
    _refuse_training_mode(network)

    def one(z: Tensor):
        return function(_apply(network, gan.generate(state, z), "generated images"))

    for z in latents.split(chunk):
        yield checkpoint(one, z, use_reentrant=False, preserve_rng_state=False)


def _log_probability_sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ_i p_i, (classes,), and Σ_i Σ_y p_iy log p_iy."""
    if logits.shape[1] < 2:
        raise ValueError(f"an Inception score needs logits of two or more classes, but the classifier returned shape {tuple(logits.shape)}")
    log_p = logits.log_softmax(1)
    return log_p.logsumexp(0), (log_p.exp() * log_p).sum()


def _moments(features: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number, mean (d,) and scatter (d, d): the sum of squared deviations from the mean."""
    mean = features.mean(0)
    return len(features), mean, (features - mean).T @ (features - mean)


def _merge(parts: Iterable[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance of all parts together, without the cancellation of sums of squares (Chan et al. 1979)."""
    parts = iter(parts)
    n, mean, scatter = next(parts)
    for m, other_mean, other_scatter in parts:
        gap = other_mean - mean
        scatter = scatter + other_scatter + torch.outer(gap, gap) * (n * m / (n + m))
        n, mean = n + m, mean + gap * (m / (n + m))
    return mean, scatter / max(1, n - 1)


def _apply(network: Network, images: Tensor, what: str) -> Tensor:
    """The network's output for images, (n, d) float64, refused unless finite."""
    module, name = _module(network), getattr(network, "__name__", type(network).__name__)
    like = next(module.parameters(), images) if module else images
    output = network(images.to(like.device, like.dtype))
    if output.ndim != 2 or len(output) != len(images):
        raise ValueError(f"{name} must return one row per image, (n, d); for {len(images)} {what} it returned shape {tuple(output.shape)}")
    bad = ~output.detach().isfinite().all(1)
    if bad.any():
        raise ValueError(f"metrics assume finite features, but {int(bad.sum())} of {len(images)} {what} have a NaN or infinite one (the first: number "
                         f"{int(bad.nonzero()[0])} of its chunk): look at these images, and at {name}'s parameters")
    return output.double()


def _module(network: Network) -> nn.Module | None:
    owner = getattr(network, "__self__", network)  # of a method
    return owner if isinstance(owner, nn.Module) else None


def _refuse_training_mode(network: Network) -> None:
    if not callable(network):
        raise TypeError(f"the network must be a torch.nn.Module or a function of images, got {type(network).__name__}")
    module = _module(network)
    for name, layer in module.named_modules() if module else ():
        if layer.training and isinstance(layer, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)) and getattr(layer, "p", 1):
            raise ValueError(f"metrics assume a fixed function of each image, but layer {name!r} of {type(module).__name__} is "
                             f"{type(layer).__name__} in training mode: call .eval() on the network")
