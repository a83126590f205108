"""Base of the facades on rectified flow: x = (1 - sigma) x_0 + sigma ε, whose levels are named by sigma."""

import math
from typing import Any

import numpy as np

from anystep._array import Array, Float64, like
from anystep._checks import MOST_STEPS, integer, number, reals
from anystep.forward import mix
from anystep.levels import Level, Levels
from anystep.predictions import Flow, Prediction
from anystep.schedulers._respaced import RespacingFacade
from anystep.spacings.flow import dynamic_shift, shift_flow, stretch_to_terminal

__all__ = ["FlowFacade"]

_CLEANEST = 1e-300
"""The level of a model call told sigma = 0, which diffusers takes; its step changes nothing."""


class FlowFacade(RespacingFacade):
    """Abstract: levels are flow sigmas, one more than steps; inverted, they are the share of the data."""

    _given_shift: float | None = None
    """What `set_shift` was told."""
    _inverted: bool = False
    """Whether ``_sigmas`` are."""
    _foreign_ends = ("karras", "exponential", "beta")

    def _configured(self) -> None:
        if not self._option("use_dynamic_shifting"):
            _positive(self.config["shift"])
        super()._configured()

    def _reset(self) -> None:
        self._begin_anew()
        if self.num_inference_steps is None:
            steps = np.arange(len(self), 0, -1) / len(self)
            self._inverted = bool(self._option("invert_sigmas")) and "flow-inverted" in self._corrections
            noise = np.append(shift_flow(steps, self._first_shift), 0.0)
            self._sigmas = 1.0 - noise if self._inverted else noise
            self._times = self._sigmas[:-1] * len(self)
        self._hand_out()

    def _hand_out(self) -> None:
        super()._hand_out()
        if self.num_inference_steps is None:  # then there is no final level among them
            self.sigmas = self._export(self._sigmas[:-1])

    # --- shifts ---

    @property
    def _depends(self) -> Any:
        return self._given_shift

    @property
    def shift(self) -> float:
        """Factor on the ratio sigma / (1 - sigma) of every level; not used with dynamic shifting."""
        return self.config["shift"] if self._given_shift is None else self._given_shift

    def set_shift(self, shift: float) -> None:
        """Replace the config's shift, from the next `set_timesteps` on.

        Parameters
        ----------
        shift
            Factor > 0.
        """
        self._given_shift = _positive(shift)

    @property
    def _first_shift(self) -> float:
        """The shift of the levels before `set_timesteps`, whose ends the default grid begins from."""
        return 1.0 if self._option("use_dynamic_shifting") else self.config["shift"]

    @property
    def sigma_max(self) -> float:
        """The largest sigma before `set_timesteps`."""
        return float(shift_flow(1.0, self._first_shift))

    @property
    def sigma_min(self) -> float:
        """The smallest sigma before `set_timesteps`."""
        return float(shift_flow(1.0 / len(self), self._first_shift))

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """Shift flow sigmas by what a resolution asks for.

        Parameters
        ----------
        mu
            The factor of the ratio t / (1 - t) is e^mu, or with ``time_shift_type="linear"`` mu itself.
        sigma
            Power that the ratio is raised to first; 1 in all schedules.
        t
            A number or an array of any library, in [0, 1].
        """
        return shift_flow(t, dynamic_shift(mu, self.config["time_shift_type"]), sigma)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """Scale 1 - t so that the last t becomes the config's ``shift_terminal``.

        Parameters
        ----------
        t
            A descending array of any library, in [0, 1].

        Raises
        ------
        ValueError
            If the config has no terminal in [0, 1), or the last t is 1.
        """
        terminal = self.config["shift_terminal"]
        if terminal is None:
            raise ValueError("shift_terminal=None: there is nothing to stretch to; set it in the config.")
        return stretch_to_terminal(t, terminal)

    # --- levels ---

    def _choose(self, steps: Any, device: Any, sigmas: Any, mu: float | None, timesteps: Any) -> None:
        """Take over the levels of a run: N of the default grid, or those given, shifted as the config says."""
        if self.config["use_dynamic_shifting"] and mu is None:
            raise ValueError(
                "mu=None: use_dynamic_shifting needs the shift that the resolution asks for; pass mu=..."
            )
        lists = {"sigmas": _numbers("sigmas", sigmas), "timesteps": _numbers("timesteps", timesteps)}
        counts = {name: len(values) for name, values in lists.items() if values is not None}
        if steps is not None:
            counts["num_inference_steps"] = integer("num_inference_steps", steps, 1, MOST_STEPS)
        if not counts:
            raise ValueError("expected num_inference_steps, sigmas or timesteps: none of them was given.")
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} says {count}" for name, count in counts.items())
            raise ValueError(f"{said} steps: expected the same number; leave num_inference_steps out.")
        noise = np.append(self._spaced(next(iter(counts.values())), mu, **lists), 0.0)
        inverted, told = bool(self.config["invert_sigmas"]), lists["timesteps"]
        chain = 1.0 - noise if inverted else noise
        if told is None or (inverted and "flow-inverted" not in self._corrections):
            told = chain[:-1] * len(self)
        self._take_over(device, num_inference_steps=len(told), _times=told, _sigmas=chain, _inverted=inverted)

    def _spaced(
        self, steps: int, mu: float | None, sigmas: Float64 | None, timesteps: Float64 | None
    ) -> Float64:
        """Share of the noise at each model call."""
        config, noise = self.config, sigmas
        if noise is None and timesteps is not None:
            import logging

            logging.getLogger(__name__).warning(
                "timesteps were given without sigmas: the model is told them as they are, and the levels made of them are "
                "shifted and respaced as the config says; give sigmas to have both from one grid."
            )
            noise = timesteps / len(self)
            if config["invert_sigmas"] and "flow-inverted" in self._corrections:
                noise = 1.0 - noise
            if "flow-custom-timesteps" in self._corrections:
                return _checked(noise)
        if noise is None:
            once = "flow-shifted-twice" in self._corrections
            low, high = (1.0 / len(self), 1.0) if once else (self.sigma_min, self.sigma_max)
            noise = np.linspace(high, low, steps)
        if config["use_dynamic_shifting"] and mu is not None:
            noise = self.time_shift(mu, 1.0, noise)
        else:
            noise = shift_flow(noise, self.shift)
        if config["shift_terminal"]:
            noise = self.stretch_shift_to_terminal(noise)
        if self._respacing is not None:
            noise = self._respaced(self._respacing, noise, steps)
        return _checked(noise)

    @property
    def _swapped(self) -> bool:
        """Whether a step takes inverted sigmas for the share of the noise."""
        return False

    @property
    def _noise(self) -> Float64:
        """Share of the noise at each level, the final one included."""
        return 1.0 - self._sigmas if self._inverted and not self._swapped else self._sigmas

    @property
    def _levels(self) -> Levels:
        noise = self._noise
        cur, nxt = np.maximum(noise[:-1], _CLEANEST), noise[1:]
        return Levels(
            Level(self._times, 1.0 - cur, cur), Level(np.append(self._times[1:], 0.0), 1.0 - nxt, nxt)
        )

    @property
    def _prediction(self) -> Prediction:
        return Flow(toward_data=self._inverted and not self._swapped)

    # --- data ---

    def scale_noise(self, sample: Array, timestep: Any, noise: Array | None = None) -> Array:
        """Sigma noise + (1 - sigma) sample, at each timestep; at the current or begin index once a loop has one.

        Parameters
        ----------
        sample, noise
            Arrays of one shape (B, ...).
        timestep
            Some of ``timesteps``, one per sample or one for all; looked up on the host, unless there is an index.
        """
        sigmas = self._noise if "flow-inverted" in self._corrections else self._sigmas
        if self._begin_index is None:
            # A single entry of timesteps may be known without being read.
            shape = getattr(timestep, "shape", None)
            single = math.prod(reals("timestep", timestep).shape if shape is None else shape) == 1
            times = [timestep] if single else np.ravel(reals("timestep", timestep))
            level = sigmas[[self.index_for_timestep(t) for t in times]]
            return mix(sample, noise, like(1.0 - level, sample), like(level, sample))
        level = float(sigmas[self._standing])
        return mix(sample, noise, 1.0 - level, level)


def _positive(shift: Any) -> float:
    found = number("shift", shift, "a factor > 0; 1 leaves the levels as they are")
    shift_flow(0.5, found)  # raises where it is out of range
    return found


def _numbers(name: str, values: Any) -> Float64 | None:
    """A flat list of finite numbers, or None."""
    if values is None:
        return None
    array = reals(name, values, "a list of one finite number a step")
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name}={values!r}: expected a list of one finite number a step.")
    return array


def _checked(noise: Float64) -> Float64:
    """The levels, if they never ascend and lie in [0, 1] up to rounding."""
    if not ((noise >= 0) & (noise <= 1 + 1e-6)).all() or (np.diff(noise) > 0).any():
        raise ValueError(
            f"sigmas={noise[:5].tolist()}: expected numbers in [0, 1], noisiest first; the final 0 is appended."
        )
    return np.minimum(noise, 1.0)
