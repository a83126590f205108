"""What a call does to PyTorch, counted instead of timed: kernels, values read by the host, memory allocated."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SHAPES = {"view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "permute", "transpose", "t"}
PARTS = {"split", "split_with_sizes", "select", "slice", "unbind", "as_strided"}
VIEWS = {*SHAPES, *PARTS, "alias", "detach", "lift_fresh"}
"""Operations that run nothing on a device; the last hands over what the host has made."""
READS = {"_local_scalar_dense", "nonzero", "equal", "_unique2", "masked_select"}
"""Operations whose result the host, or a shape, depends on."""


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


class Kernels(TorchDispatchMode):
    """Counts kernels on full-size tensors, on others, full-size tensors made, and values read from the device."""

    def __init__(self, size):
        super().__init__()
        self.size, self.full, self.scalar, self.reads, self.made = size, 0, 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = str(function).removeprefix("aten.").partition(".")[0]
        if name in READS:
            self.reads += 1
        elif isinstance(out, torch.Tensor) and out.numel() == self.size:
            inputs = {a.untyped_storage()._cdata for a in _tensors((*args, *(kwargs or {}).values()))}
            fresh = out.untyped_storage()._cdata not in inputs
            self.full += name not in VIEWS and not name.startswith("empty")
            self.made += fresh
        elif isinstance(out, torch.Tensor):
            self.scalar += name not in VIEWS
        return out
