"""Which device computes: refused where it is absent, and told in words."""

import os

import torch


def check_device(device: str, asked: str | None = None) -> None:
    """Refuse, with a RuntimeError, a GPU that is not there; `asked` says how it was asked for."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"a GPU was asked for ({asked or f'device {device!r}'}) but torch sees none: use the device 'cpu', or install the torch "
                           f"build for your driver (this is torch {torch.__version__})")


def device_name(device: str) -> str:
    """The device in words, for a table's header."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
