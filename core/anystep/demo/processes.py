"""The digits model on processes it was not trained for: its prediction at a level serves every process that has the level.

A sample x = alpha x_0 + sigma ε of any process is, but for a factor, the model's own x_t at the timestep of the same
noise-to-signal ratio. So the model tells ε in x, and with it the score -ε / sigma or whatever a scheduler asks for.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from anystep._array import Array, kind
from anystep.demo import digits
from anystep.forward import mix
from anystep.predictions import prediction
from anystep.schedules import VP, BetaSchedule

__all__ = ["LOOPS", "Loop", "noise_model"]

Noise = Callable[[Array, float, float], Array]
"""ε̂ of samples whose process has (alpha, sigma)."""


def noise_model(model: Callable[[Array, float], Array]) -> Noise:
    """The digits model as an estimate of the noise in samples of any process.

    Parameters
    ----------
    model
        Called with x_t and the timestep, returns v; see `anystep.demo.digits`.
    """
    config = digits.scheduler_config()
    schedule = BetaSchedule.named(
        config["beta_schedule"],
        config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
    )
    predicts = prediction(config["prediction_type"])

    def noise(x: Array, alpha: float, sigma: float) -> Array:
        # Beyond the ends of the training range, the nearest level that the model knows.
        level = schedule.at(np.clip(sigma / alpha, schedule.sigma_min, schedule.sigma_max))
        scale = float(level.alpha_t) / alpha
        own = x if scale == 1 else kind(x).xp.astype(x * scale, x.dtype, copy=False)
        c, d = predicts.to_noise(level)
        return mix(own, model(own, float(level.t)), float(c), float(d))

    return noise


class Loop(NamedTuple):
    """How a scheduler on another process draws."""

    config: Mapping[str, Any]
    run: Callable[[Any, Array, Noise, Any, Iterable[Any]], Array]
    """(scheduler, start sample, noise, generator, timesteps) -> samples."""


def _karras_ve(scheduler: Any, x: Array, noise: Noise, generator: Any, times: Iterable[Any]) -> Array:
    for t in times:
        sigma = scheduler.schedule[t]
        prev = scheduler.schedule[t - 1] if t > 0 else 0.0
        raised, hat = scheduler.add_noise_to_input(x, sigma, generator)
        out = scheduler.step(-noise(raised, 1.0, hat), hat, prev, raised)
        x = out.prev_sample
        if prev:
            output = -noise(x, 1.0, float(prev))
            x = scheduler.step_correct(output, hat, prev, raised, x, out.derivative).prev_sample
    return x


def _sde_ve(scheduler: Any, x: Array, noise: Noise, generator: Any, times: Iterable[Any]) -> Array:
    out = None
    for t, sigma in zip(times, scheduler.sigmas, strict=True):
        sigma = float(sigma)
        for _ in range(scheduler.config["correct_steps"]):
            x = scheduler.step_correct(noise(x, 1.0, sigma) * (-1 / sigma), x, generator).prev_sample
        out = scheduler.step_pred(noise(x, 1.0, sigma) * (-1 / sigma), t, x, generator)
        x = out.prev_sample
    return x if out is None else out.prev_sample_mean


def _sde_vp(scheduler: Any, x: Array, noise: Noise, generator: Any, times: Iterable[Any]) -> Array:
    schedule = VP(beta_min=scheduler.config["beta_min"], beta_max=scheduler.config["beta_max"])
    mean = x
    for t in times:
        level = schedule.level(float(t))
        x, mean = scheduler.step_pred(noise(x, float(level.alpha_t), float(level.sigma_t)), x, t, generator)
    return mean


def _ipndm(scheduler: Any, x: Array, noise: Noise, generator: Any, times: Iterable[Any]) -> Array:
    for t in times:
        angle = float(t) * np.pi / 2  # what such a model is told: alpha = cos, sigma = sin of it
        # Pure noise, alpha = 0, is beyond what the model knows; this is the noisiest level that it does.
        alpha, sigma = max(float(np.cos(angle)), 6.4e-3), float(np.sin(angle))
        velocity = mix(noise(x, alpha, sigma), x, 1 / alpha, -sigma / alpha)
        x = scheduler.step(velocity, t, x).prev_sample
    return x


def _flow_match(scheduler: Any, x: Array, noise: Noise, generator: Any, times: Iterable[Any]) -> Array:
    for t in times:
        sigma = float(t) / len(scheduler)
        # At pure noise as at the noisiest level that the model knows, which is alpha = 6.4e-3 of sigma.
        alpha = max(1 - sigma, 6.4e-3)
        # ε - x̂₀, with x̂₀ = (x - sigma ε) / alpha
        velocity = mix(noise(x, alpha, sigma), x, 1 + sigma / alpha, -1 / alpha)
        x = scheduler.step(velocity, t, x, generator=generator).prev_sample
    return x


def _repaint(scheduler: Any, x: Array, noise: Noise, generator: Any, times: Iterable[Any]) -> Array:
    nothing, last = x * 0, np.inf  # an empty picture of which nothing is known: everything is painted
    for t in map(int, times):
        if t < last:
            level = scheduler.schedule.level(t)
            output = noise(x, float(level.alpha_t), float(level.sigma_t))
            x = scheduler.step(output, t, x, nothing, nothing, generator).prev_sample
        else:
            x = scheduler.undo_step(x, last, generator)
        last = t
    return x


LOOPS = {
    "repaint": Loop({}, _repaint),
    "ipndm": Loop({}, _ipndm),
    "flow_match": Loop({}, _flow_match),
    "karras_ve": Loop({"sigma_min": 0.02, "sigma_max": 100.0}, _karras_ve),
    "sde_ve": Loop({"sigma_min": 0.01, "sigma_max": 50.0}, _sde_ve),
    "sde_vp": Loop({"beta_min": 0.1, "beta_max": 20.0}, _sde_vp),
}
"""By the names of `anystep.demo.drawing.SCHEDULERS`."""
