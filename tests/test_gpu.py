"""On a GPU: the same numbers as on the CPU, and the same bits twice. The oracles of the other files run there too (`make test-gpu`)."""

import pytest
import torch

import gan_influence as gi
from conftest import tiny_metric, tiny_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-2)])
def test_cuda_agrees_with_the_cpu(order, dtype, tolerance):
    scores, truth = zip(*((gi.influence(run, tiny_metric(run.gan)), gi.leave_one_out(run, tiny_metric(run.gan), range(24)))
                          for run in (tiny_run(order, device=device, dtype=dtype) for device in ("cpu", "cuda"))))
    for cpu, cuda in (scores, truth):
        assert cuda.device.type == "cpu"
        assert float((cpu - cuda).abs().max() / cpu.abs().max()) < tolerance


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_cuda_repeats_itself_bit_for_bit(order):
    first, second = tiny_run(order, device="cuda"), tiny_run(order, device="cuda")
    assert torch.equal(gi.influence(first, tiny_metric(first.gan)), gi.influence(second, tiny_metric(second.gan)))
    assert all(torch.equal(a, b) for a, b in zip(first.replay().tensors(), second.final.tensors()))
