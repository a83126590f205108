"""diffusers' schedulers executed in float64: the oracle for what their formulas say.

diffusers keeps its tables in float32, so agreement with it ends near 1e-5 and cannot tell a wrong digit of ours
from one of its own. Here the installed source of a scheduler module is read and executed once more, under another
name, in a world where "float32" means float64: the `torch` and `np` it sees are the real ones with a handful of
names replaced, and `.float()` is read as `.double()`. Nothing else changes, quirks included, and no line of
diffusers is kept in this repository.

Noise is drawn as diffusers draws it (dtype and all, see `noise_drawn_in`) and then widened, so that the oracle and
the float32 original are given the same numbers.

>>> scheduler = float64_class("DDIMScheduler")()
>>> scheduler.alphas_cumprod.dtype
torch.float64
>>> import diffusers
>>> diffusers.DDIMScheduler().alphas_cumprod.dtype
torch.float32
"""

import ast
import contextlib
import functools
import importlib.util
import sys
import types
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

__all__ = ["float64_class", "float64_module", "noise_drawn_in"]

# Functions that choose a dtype by torch's default when they are not told one.
_FACTORIES = [
    "arange",
    "as_tensor",
    "empty",
    "eye",
    "full",
    "linspace",
    "logspace",
    "ones",
    "tensor",
    "zeros",
]
_drawn_in = [torch.float32]


class _Replaced:
    """A module with some of its names replaced."""

    def __init__(self, module, names):
        self._module, self._names = module, names

    def __getattr__(self, name):
        return self._names[name] if name in self._names else getattr(self._module, name)


@contextlib.contextmanager
def _float64_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _in_float64(function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with _float64_default():
            return function(*args, **kwargs)

    return wrapped


class _TensorType(type):
    """`torch.Tensor` as a type to ask about, and a constructor whose result is float64."""

    def __instancecheck__(cls, value):
        return isinstance(value, torch.Tensor)

    def __call__(cls, *args):
        with _float64_default():
            return torch.Tensor(*args)


class _Tensor(metaclass=_TensorType):
    pass


_TORCH = _Replaced(
    torch,
    {name: _in_float64(getattr(torch, name)) for name in _FACTORIES}
    | {"float32": torch.float64, "float": torch.float64}
    | {"Tensor": _Tensor, "FloatTensor": torch.DoubleTensor},
)
_NUMPY = _Replaced(np, {"float32": np.float64})


class _FloatIsDouble(ast.NodeTransformer):
    def visit_Attribute(self, node):
        self.generic_visit(node)
        of_module = isinstance(node.value, ast.Name) and node.value.id in {"torch", "np"}
        if node.attr == "float" and not of_module:
            node.attr = "double"
        return node


@contextlib.contextmanager
def noise_drawn_in(dtype):
    """Inside, the oracle draws its noise in `dtype`, as the float32 (or other) run beside it does."""
    _drawn_in.append(dtype)
    try:
        yield
    finally:
        _drawn_in.pop()


def _widened_noise(shape, generator=None, device=None, dtype=None, layout=None):
    return randn_tensor(shape, generator, device, _drawn_in[-1], layout).double()


@functools.cache
def float64_module(name):
    """`diffusers.schedulers.<name>`, executed in float64; name is such as "scheduling_ddim"."""
    found = importlib.util.find_spec(f"diffusers.schedulers.{name}")
    source = Path(found.origin).read_text(encoding="utf-8")
    tree = ast.fix_missing_locations(_FloatIsDouble().visit(ast.parse(source, found.origin)))
    module = types.ModuleType(f"float64_{name}")
    module.__package__ = found.parent  # where the source's relative imports lead
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    exec(compile(tree, found.origin, "exec"), module.__dict__)
    module.torch, module.np = _TORCH, _NUMPY
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = _widened_noise
    return module


def float64_class(name):
    """The scheduler class `diffusers.<name>`, executed in float64."""
    module = getattr(diffusers, name).__module__.rpartition(".")[2]
    return getattr(float64_module(module), name)
