"""Adversarial SGD written a second time, slowly and plainly, sharing nothing with the package but the networks.

Gradients are torch.func.grad by one argument, which is partial by construction; weights are one vector of all instances.
"""

import torch
from torch.func import functional_call, grad
from torch.nn import functional as F


def textbook_step(gan, generator, discriminator, x, weights, z, generator_z, rate_g, rate_d, order, decay):
    """One update of both players for the non-saturating loss; dictionaries of parameters in and out."""
    def discriminator_loss(d, g):
        real = functional_call(gan.discriminator, d, (x,)).squeeze(-1)
        fake = functional_call(gan.discriminator, d, (functional_call(gan.generator, g, (z,)),)).squeeze(-1)
        kernels = sum((p**2).sum() for p in d.values() if p.ndim >= 2)
        return (weights * torch.log1p(torch.exp(-real))).sum() / len(x) + torch.log1p(torch.exp(fake)).mean() + 0.5 * decay * kernels

    def generator_loss(g, d):
        fake = functional_call(gan.discriminator, d, (functional_call(gan.generator, g, (generator_z,)),)).squeeze(-1)
        return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake)) + 0.5 * decay * sum((p**2).sum() for p in g.values() if p.ndim >= 2)

    d_gradient = grad(discriminator_loss)(discriminator, generator)
    new_discriminator = {k: p - rate_d * d_gradient[k] for k, p in discriminator.items()}
    g_gradient = grad(generator_loss)(generator, new_discriminator if order == "alternating" else discriminator)
    return {k: p - rate_g * g_gradient[k] for k, p in generator.items()}, new_discriminator


def textbook_run(run, weights, rates=None):
    """The final parameters of a whole recorded run, differentiable in `weights` (n,)."""
    generator, discriminator = run.initial.generator, run.initial.discriminator
    for t in range(run.steps):
        rate_g, rate_d = run.learning_rates[t]
        drawn = run.schedule.indices(t).to(run.x.device)
        z, generator_z = (a if a is None else a.to(run.x) for a in run.schedule.latents(t))
        generator, discriminator = textbook_step(run.gan, generator, discriminator, run.x[drawn], weights[drawn], z, z if generator_z is None else generator_z,
                                                 rate_g, rate_d, run.order, run.gan.weight_decay)
    return generator, discriminator
