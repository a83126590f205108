"""Counter noise as one operation of PyTorch's, for graphs: Inductor takes half a minute to compile its twenty rounds.

Outside of graphs it is the plain function.
"""

from typing import Any

import torch
from array_api_compat import torch as xp

from anystep._counter import generate
from anystep._quantiles import LAWS
from anystep._threefry import low_bits

__all__ = ["counter_noise"]


def _plain(device: torch.device, *arguments: Any, **options: Any) -> torch.Tensor:
    return generate(xp, device, *arguments, **options, block=2**17 if device.type == "cpu" else None)


@torch.library.custom_op("anystep::counter_noise", mutates_args=())
def _operation(
    step: torch.Tensor, samples: torch.Tensor, seed: int, stream: int, elements: int, law: int, double: bool
) -> torch.Tensor:
    """(B, elements) of steps, one or B, and int32 sample ids (B,); steps are read modulo 2^32, the seed modulo 2^64."""
    name, step = LAWS[law], low_bits(xp, step)
    values = _plain(
        samples.device, seed % 2**64, stream, step, samples, elements=elements, law=name, double=double
    )
    return values.contiguous()


@_operation.register_fake
def _(step: Any, samples: Any, seed: int, stream: int, elements: Any, law: int, double: bool) -> Any:
    return samples.new_empty((samples.shape[0], elements), dtype=torch.float64 if double else torch.float32)


def _mapped(info: Any, axes: Any, step: Any, samples: Any, *rest: Any) -> tuple[torch.Tensor, int]:
    """The operation under vmap: a longer batch."""
    step, samples = (
        x.unsqueeze(0) if axis is None else x.movedim(axis, 0)
        for x, axis in zip((step, samples), axes[:2], strict=True)
    )
    rows = samples.shape[1]
    step, samples = (x.expand(info.batch_size, rows).reshape(-1) for x in (step, samples))
    return _operation(step, samples, *rest).reshape(info.batch_size, rows, -1), 0


torch.library.register_vmap(_operation, _mapped)


def counter_noise(
    like: torch.Tensor,
    seed: int,
    stream: int,
    step: Any,
    samples: torch.Tensor,
    *,
    elements: int,
    law: str,
    double: bool,
) -> torch.Tensor:
    """`anystep._counter.generate` where ``like`` is."""
    if not torch.compiler.is_compiling():
        return _plain(like.device, seed, stream, step, samples, elements=elements, law=law, double=double)
    if isinstance(step, int):  # data, so that one graph serves all steps
        step = torch.full((1,), step, dtype=torch.int64, device=like.device)
    return _operation(step, samples, seed - (seed >> 63 << 64), stream, elements, LAWS.index(law), double)
