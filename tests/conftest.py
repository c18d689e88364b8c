from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import gan_influence as gi

torch.set_num_threads(1)

#: Not needed by the engine and its recordings: where one is not installed, the tests that need it are skipped and say so.
OPTIONAL = {"dask", "dicebear", "dicebear_styles", "distributed", "IPython", "ipywidgets", "jupyter_client", "matplotlib", "nbclient", "nbconvert",
            "nbformat", "papermill", "PIL", "psutil", "resvg_py", "seaborn", "torchvision"}


def skip_where_optional(error: BaseException | None) -> None:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in OPTIONAL:
        pytest.skip(f"{error.name} is not installed", allow_module_level=True)


def optional(name: str):
    """A module for a file of which only some tests need it: those are skipped where it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return Missing(name)


def needs(name: str):
    """A mark for tests of what says itself that a module is not installed."""
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")


class Missing:
    def __init__(self, name: str):
        self.name = name

    def __getattr__(self, _):
        raise ModuleNotFoundError(f"No module named {self.name!r}", name=self.name)


class Module(pytest.Module):
    def collect(self):
        try:
            return list(super().collect())
        except self.CollectError as error:
            skip_where_optional(error.__cause__)
            raise


def pytest_pycollect_makemodule(module_path, parent) -> pytest.Module:
    return Module.from_parent(parent, path=module_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    try:
        return (yield)
    except ModuleNotFoundError as error:
        skip_where_optional(error)
        raise


pytest_runtest_call = pytest_runtest_setup


def on_a_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")(test))


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
