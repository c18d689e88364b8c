"""What the discriminator pays on held-out data: the baseline that looks at no metric."""

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..game.gan import GAN
from ..game.state import State


class DiscriminatorLoss:
    """The discriminator's loss on held-out data and fixed latents: the baseline that looks at no metric.

    Args:
        x: held-out instances, (m, ...).
        latents: fixed latents, (n, latent_dim).
        chunk: instances in memory at once; the gradient recomputes one chunk after another.

    Calling it gives mean l_real(D(x)) + mean l_fake(D(G(z))); counted as lower is better, as published.

    Source: Terashita et al., ICLR 2021, section 5 (baseline).
    """

    name = "discriminator loss"
    higher_is_better = False

    def __init__(self, x: Tensor, latents: Tensor, chunk: int = 1_000):
        self.x, self.latents, self.chunk = x, latents, chunk

    def __call__(self, gan: GAN, state: State) -> Tensor:
        def real(x: Tensor) -> Tensor:
            return gan.loss.real(gan.discriminate(state, x)).sum() / len(self.x)

        def fake(z: Tensor) -> Tensor:
            return gan.loss.fake(gan.discriminate(state, gan.generate(state, z))).sum() / len(self.latents)

        return sum(checkpoint(part, chunk, use_reentrant=False, preserve_rng_state=False)
                   for part, inputs in ((real, self.x), (fake, self.latents)) for chunk in inputs.split(self.chunk))
