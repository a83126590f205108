"""k-diffusion's formulas, written out: what a sampler costs without any class around it.

The arithmetic of Karras et al. 2022 and of Crowson's k-diffusion on x / alpha, where the model returns the clean sample.
Sigmas are 0-d tensors, as they are there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

__all__ = ["FORMULAS"]

Model = Callable[[torch.Tensor, int], torch.Tensor]


def euler(model: Model, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    for i in range(len(sigmas) - 1):
        d = (x - model(x, i)) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def euler_ancestral(model: Model, x: torch.Tensor, sigmas: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    for i in range(len(sigmas) - 1):
        now, then = sigmas[i], sigmas[i + 1]
        up = (then**2 * (now**2 - then**2) / now**2).sqrt()
        down = (then**2 - up**2).sqrt()
        x = x + (x - model(x, i)) / now * (down - now)
        if then > 0:
            x = x + noise * up
    return x


def dpmpp_2m(model: Model, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    before, times = None, -sigmas.log()
    for i in range(len(sigmas) - 1):
        clean, h = model(x, i), times[i + 1] - times[i]
        aim = clean
        if before is not None and sigmas[i + 1] != 0:
            r = (times[i] - times[i - 1]) / h
            aim = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * before
        x = sigmas[i + 1] / sigmas[i] * x - torch.expm1(-h) * aim
        before = clean
    return x


def _basis(node: float, others: list[float], at: float) -> float:
    """Lagrange's polynomial that is 1 at a node and 0 at others."""
    return float(np.prod([(at - other) / (node - other) for other in others]))


def lms(model: Model, x: torch.Tensor, sigmas: torch.Tensor, order: int = 4) -> torch.Tensor:
    from scipy.integrate import quad

    ends, slopes = sigmas.numpy().astype(float), list[torch.Tensor]()
    for i in range(len(sigmas) - 1):
        slopes = [*slopes, (x - model(x, i)) / sigmas[i]][-order:]
        kept = len(slopes)
        for j in range(kept):
            node, others = ends[i - j], [ends[i - k] for k in range(kept) if k != j]
            basis = partial(_basis, node, others)
            x = x + quad(basis, ends[i], ends[i + 1], epsrel=1e-4)[0] * slopes[-1 - j]
    return x


FORMULAS: dict[str, tuple[Callable[..., torch.Tensor], str, dict[str, Any]]] = {
    "k-diffusion's euler": (euler, "Euler", {}),
    "k-diffusion's euler_ancestral": (euler_ancestral, "EulerAncestral", {}),
    "k-diffusion's dpmpp_2m": (dpmpp_2m, "DPMSolver", {}),
    "k-diffusion's lms": (lms, "LMS", {}),
}
"""Name, formula, and the sampler of anystep that does the same, with its arguments."""
