"""On a GPU: the same numbers as on the CPU, and the same bits twice. The oracles of the other files run there too (`make test-gpu`)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gan_influence as gi
from conftest import OPTIONAL, on_a_gpu, tiny_metric, tiny_run

HERE = Path(__file__).parent


def test_every_gpu_test_is_there_without_the_libraries_of_notebooks():
    without = f"import sys, pytest; sys.modules.update(dict.fromkeys({sorted(OPTIONAL)})); sys.exit(pytest.main(sys.argv[1:]))"
    listed = subprocess.run([sys.executable, "-c", without, "-q", "--collect-only", "-m", "gpu", "-p", "no:nbval", "tests"], cwd=HERE.parent,
                            capture_output=True, text=True)
    assert listed.returncode == 0, listed.stdout
    need = re.compile(r"(?m)^@on_a_gpu|^@pytest\.mark\.gpu|^def test_\w+\(.*\bdevice\b")
    assert set(re.findall(r"(?m)^tests/(\w+)\.py::", listed.stdout)) == {path.stem for path in HERE.glob("test_*.py") if need.search(path.read_text())}


@on_a_gpu
@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-2)])
def test_cuda_agrees_with_the_cpu(order, dtype, tolerance):
    scores, truth = zip(*((gi.influence(run, tiny_metric(run.gan)), gi.leave_one_out(run, tiny_metric(run.gan), range(24)))
                          for run in (tiny_run(order, device=device, dtype=dtype) for device in ("cpu", "cuda"))))
    for cpu, cuda in (scores, truth):
        assert cuda.device.type == "cpu"
        assert float((cpu - cuda).abs().max() / cpu.abs().max()) < tolerance


@on_a_gpu
@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_cuda_repeats_itself_bit_for_bit(order):
    first, second = tiny_run(order, device="cuda"), tiny_run(order, device="cuda")
    assert torch.equal(gi.influence(first, tiny_metric(first.gan)), gi.influence(second, tiny_metric(second.gan)))
    assert all(torch.equal(a, b) for a, b in zip(first.replay().tensors(), second.final.tensors()))
