import pytest
import torch
from torch import nn

import gan_influence as gi

torch.set_num_threads(1)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")])])
def device(request) -> str:
    return request.param


def tiny_gan(activation: type[nn.Module] = nn.Tanh, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0, **options) -> gi.GAN:
    """A GAN of 143 parameters on two-dimensional data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = nn.Sequential(nn.Linear(3, 8), activation(), nn.Linear(8, 2))
        discriminator = nn.Sequential(nn.Linear(2, 10), activation(), nn.Linear(10, 5), activation(), nn.Linear(5, 1))
    return gi.GAN(generator.to(device, dtype), discriminator.to(device, dtype), latent_dim=3, **options)


def tiny_data(n: int = 24, device: str = "cpu", dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return gi.data.normal_2d(train=n, valid=1, test=1, seed=3).train.to(device, dtype)


def tiny_metric(gan: gi.GAN, n: int = 15) -> gi.metrics.AverageLogLikelihood:
    return gi.metrics.AverageLogLikelihood(gi.data.normal_2d(1, n, 1, seed=4).valid.to(gan.device, gan.dtype), gan.sample_latents(n, seed=5))


def tiny_run(order: str = "alternating", epochs: int = 3, n: int = 24, activation: type[nn.Module] = nn.Tanh, device: str = "cpu",
             learning_rate=0.1, stride: int | None = None, dtype: torch.dtype = torch.float64, **options) -> gi.Trajectory:
    return gi.train(tiny_gan(activation, device, dtype, **options), tiny_data(n, device, dtype), epochs, batch_size=6,
                    optimizer=gi.SGD(learning_rate), order=order, seed=7, stride=stride)
