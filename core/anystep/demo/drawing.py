"""Digits drawn by the demo model through any scheduler, on any backend."""

import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import anystep
from anystep._array import backend
from anystep.demo import digits, processes

__all__ = ["SCHEDULERS", "Drawing", "draw_digits", "grid"]

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "ipndm": "IPNDMScheduler",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "flow_match": "FlowMatchEulerDiscreteScheduler",
    "repaint": "RePaintScheduler",
    "karras_ve": "KarrasVeScheduler",
    "sde_ve": "ScoreSdeVeScheduler",
    "sde_vp": "ScoreSdeVpScheduler",
}
"""Short names of the classes that `draw_digits` knows; all but those on another process take the model's config as it is."""


class Drawing(NamedTuple):
    """What was drawn, and what it took."""

    images: npt.NDArray[np.float32]
    """Shape (count, 1, 8, 8), in about [-1, 1], on the host."""
    labels: npt.NDArray[np.int64]
    """The digit each was drawn for, shape (count,)."""
    steps: int
    """Scheduler steps."""
    calls: int
    """Model calls a sample; two at a step with guidance."""
    seconds: float
    """Wall time of the loop."""


def draw_digits(
    scheduler: str = "ddim",
    steps: int = 25,
    *,
    backend_name: str = "numpy",
    device: Any = None,
    dtype: str = "float32",
    seed: int = 0,
    count: int = 100,
    classes: Sequence[int] = tuple(range(10)),
    guidance: float = digits.GUIDANCE,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Drawing:
    """Draw handwritten digits.

    Noise comes from NumPy's generator whatever the backend, so the same seed starts from the same noise everywhere.

    Parameters
    ----------
    scheduler
        A key of `SCHEDULERS`.
    steps
        Number of steps, in [1, 1000].
    backend_name, device, dtype
        Array library, its device (None: its default) and ``"float32"``, ``"float64"``, ``"float16"`` or ``"bfloat16"``.
    seed
        Of start sample and step noise.
    count
        Number of digits, >= 1; the classes are asked for in turn.
    classes
        Digits 0 to 9 to draw.
    guidance
        Scale of classifier-free guidance; 1 is none.
    progress
        Wraps the iterable of timesteps.

    Raises
    ------
    ValueError
        If the scheduler, the backend or a number is not one of those.
    ImportError
        If the backend's library is not installed.

    Examples
    --------
    >>> drawing = draw_digits(steps=5, count=4, classes=[3, 7])
    >>> drawing.images.shape, drawing.labels.tolist()
    ((4, 1, 8, 8), [3, 7, 3, 7])
    """
    if scheduler not in SCHEDULERS:
        raise ValueError(f"scheduler={scheduler!r}: expected one of {', '.join(SCHEDULERS)}.")
    if count < 1 or not classes:
        raise ValueError(f"count={count}, classes={list(classes)}: expected at least one digit to draw.")
    lib, model = backend(backend_name), digits.load()
    place = lib.device(device)
    other = processes.LOOPS.get(scheduler)
    config = digits.scheduler_config() if other is None else other.config
    stepper = getattr(anystep, SCHEDULERS[scheduler]).from_config(config)
    stepper = stepper if other is None else stepper.corrected()
    stepper.set_timesteps(steps)
    labels = np.resize(np.asarray(classes, dtype=np.int64), count)
    wanted = lib.asarray(labels.astype(np.int32), device=place)
    rng = np.random.default_rng(seed)
    start = rng.standard_normal((count, 1, 8, 8), dtype=np.float32) * np.float32(
        getattr(stepper, "init_noise_sigma", 1)
    )
    x = lib.asarray(start, dtype=dtype, device=place)
    begin = time.perf_counter()
    calls, times = 0, progress(stepper.timesteps)

    def called(x: Any, t: float) -> Any:
        nonlocal calls
        calls += 1 if guidance == 1 else 2
        return model.guided(x, t, wanted, guidance)

    if other is not None:
        x = other.run(stepper, x, processes.noise_model(called), rng, times)
    else:
        drawn = {"generator": rng} if "generator" in inspect.signature(stepper.step).parameters else {}
        for t in times:
            output = called(stepper.scale_model_input(x, t), float(t))
            x = stepper.step(output, t, x, **drawn).prev_sample
    images = np.asarray(lib.to_numpy(x), dtype=np.float32)
    return Drawing(images, labels, steps, calls, time.perf_counter() - begin)


def grid(
    images: npt.NDArray[np.float32], columns: int = 10, zoom: int = 4, gap: int = 1
) -> npt.NDArray[np.uint8]:
    """Images in [-1, 1] side by side as one picture, dark ink on white, each pixel ``zoom`` pixels wide.

    Examples
    --------
    >>> grid(np.ones((3, 1, 8, 8), dtype=np.float32), columns=2, zoom=1).shape
    (19, 19)
    """
    rows = -(-len(images) // columns)
    size = images.shape[-1] + gap
    sheet = np.full((rows * size + gap, columns * size + gap), 200, dtype=np.uint8)
    for k, image in enumerate(np.clip(images[:, 0], -1, 1)):
        top, left = gap + k // columns * size, gap + k % columns * size
        sheet[top : top + size - gap, left : left + size - gap] = np.round((1 - image) * 127.5)
    return sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)
