"""`EulerDiscreteScheduler`: Euler's method under diffusers' name, config and methods."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array, Float64, host, like
from anystep._draw import draw
from anystep._update import estimate
from anystep.forward import mix, velocity
from anystep.samplers._late_churn import LateChurnEuler
from anystep.schedulers._config import register_to_config
from anystep.schedulers._facade import answer
from anystep.schedulers._mixin import KarrasDiffusionSchedulers
from anystep.schedulers._outputs import EulerDiscreteSchedulerOutput
from anystep.schedulers._sigma import SigmaFacade

__all__ = ["EulerDiscreteScheduler"]


class EulerDiscreteScheduler(SigmaFacade):
    """Euler's method, drop-in for diffusers' class of that name; see `anystep.Euler` for the method.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type
        The beta table and the model's output; see `DDIMScheduler`.
    interpolation_type
        ``"linear"``: sigmas read off the table at the timesteps; ``"log_linear"``: even in log sigma.
    use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas
        Respace the sigmas; at most one.
    sigma_min, sigma_max
        Ends of the respaced sigmas; None takes those of the table.
    timestep_spacing, steps_offset
        ``"linspace"`` (fractional timesteps), ``"leading"`` or ``"trailing"``.
    timestep_type
        ``"continuous"`` with ``prediction_type="v_prediction"`` tells the model ln(sigma) / 4.
    rescale_betas_zero_snr
        Rescale the table to (almost) zero terminal SNR.
    final_sigmas_type
        Where the last step ends: ``"zero"`` or ``"sigma_min"``.

    Raises
    ------
    NotImplementedError, ValueError
        If a value is none of these.

    References
    ----------
    Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 2. Where diffusers' results differ from
    it: docs/deviations.md.

    Examples
    --------
    >>> scheduler = EulerDiscreteScheduler(use_karras_sigmas=True)
    >>> scheduler.set_timesteps(3)
    >>> [round(float(sigma), 2) for sigma in scheduler.sigmas]
    [157.41, 5.91, 0.01, 0.0]
    """

    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]
    deviations: ClassVar[Mapping[str, str]] = {
        "euler-log-linear": "log_linear makes N + 1 sigmas before the terminal one, so a run stops above it",
        "euler-get-velocity": "get_velocity looks alpha up at the row of a timestep instead of at the timestep",
        "linspace-single-step": "a single linspace step starts at timestep 0",
    }
    _interpolation: ClassVar[Mapping[str, Any]] = {"interpolation": "linear"}

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:
        self._configured()

    def _configured(self) -> None:
        flags = [
            f for f in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if self.config[f]
        ]
        if len(flags) > 1:
            raise ValueError(
                f"{flags[0]} and {flags[1]} are both set: at most one of them can respace the sigmas."
            )
        super()._configured()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
    ) -> None:
        """Choose the levels of a run: N of them by the config's spacing, or those given.

        Parameters
        ----------
        num_inference_steps
            N >= 1; None with one of the others.
        device
            Where ``timesteps`` and ``sigmas`` are wanted; see `to`. None leaves them as they were, NumPy at
            first.
        timesteps
            N strictly descending numbers in [0, T - 1], whose sigmas are read off the table.
        sigmas
            N + 1 strictly descending numbers >= 0, the final level included.

        Raises
        ------
        ValueError
            If not exactly one of the three is given, or a value is out of range. Nothing is changed then.
        """
        if sum(given is not None for given in (num_inference_steps, timesteps, sigmas)) != 1:
            raise ValueError(
                "expected exactly one of num_inference_steps, timesteps and sigmas; pass the others as None."
            )
        if timesteps is not None and (self._respacing or self._continuous):
            blocked = self._respacing or "continuous timesteps"
            raise ValueError(
                f"timesteps were given, but the config asks for {blocked}: give sigmas instead, or change the config."
            )
        if sigmas is not None:
            chain = self._custom_sigmas(sigmas)
            times = self._schedule.timestep(chain[:-1])
        else:
            times = self._timesteps(num_inference_steps, timesteps)
            chain, times = self._chain(times)
        steps, times = len(times), self._told(times, chain[:-1])
        if not (chain[: len(times)] > 0).all():
            raise ValueError(
                "sigma is 0 at a level where the model is called: only the final level may have no noise."
            )

        def build(trial: Any) -> None:
            trial._plan(trial._default)

        fresh = {"_plans": {}, "_run": type(self._run)(), "_begin_index": None}
        self._commit(device, build, num_inference_steps=steps, _times=times, _sigmas=chain, **fresh)

    def _timesteps(self, steps: Any, timesteps: Any) -> Float64:
        if timesteps is not None:
            return self._custom_timesteps(timesteps)
        return self._spaced(steps, single="linspace-single-step" in self._corrections)

    def _chain(self, times: Float64) -> tuple[Float64, Float64]:
        """Sigmas with the terminal one, and the timesteps that go with them."""
        schedule, steps = self._schedule, len(times)
        if self.config["interpolation_type"] == "log_linear":
            corrected = "euler-log-linear" in self._corrections
            points = np.linspace(
                np.log(schedule.sigma_max), np.log(schedule.sigma_min), steps + (not corrected)
            )
            sigmas = np.exp(points)
            times = schedule.timestep(sigmas) if corrected else times
        else:
            sigmas = np.asarray(schedule.level(times).karras_sigma)
        if self._respacing:
            sigmas = self._convert(self._respacing, sigmas, steps)
            times = schedule.timestep(sigmas)
        terminal = schedule.sigma_min if self.config["final_sigmas_type"] == "sigma_min" else 0.0
        return np.append(sigmas, terminal), times

    @property
    def _respacing(self) -> str | None:
        names = ("karras", "exponential", "beta")
        return next((name for name in names if self.config[f"use_{name}_sigmas"]), None)

    @property
    def _continuous(self) -> bool:
        return (
            self.config["timestep_type"] == "continuous" and self.config["prediction_type"] == "v_prediction"
        )

    def _told(self, times: Float64, sigmas: Float64) -> Float64:
        return 0.25 * np.log(sigmas) if self._continuous else times

    @property
    def _default(self) -> LateChurnEuler:
        return LateChurnEuler(count=len(self._sigmas) - 1)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """One step to the next sigma.

        Parameters
        ----------
        model_output
            The model's output, shape of ``sample``.
        timestep
            One of ``timesteps``; looked up at the first call, then not read. Integers are refused: they would
            be positions.
        sample
            The sample in Karras coordinates, any array library; never written to.
        s_churn, s_tmin, s_tmax, s_noise
            Noise added, after the model call as in diffusers; see `anystep.Euler`, which adds it before, as
            in the paper.
        generator
            Source of that noise; see `anystep.draw`.
        return_dict
            Whether to return `EulerDiscreteSchedulerOutput` or a tuple.

        Returns
        -------
        EulerDiscreteSchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``, and ``pred_original_sample``,
            computed when read.

        Raises
        ------
        IndexError
            If the steps are done, or the first timestep is not one of ``timesteps``.
        ValueError
            If the timestep is an integer, or a shape differs. Nothing is changed then.
        """
        _reject_integer("step", timestep)
        index = self._index(timestep)
        if not s_churn:
            sampler, raised = self._default, 0.0
        else:
            sampler = LateChurnEuler(s_churn, s_tmin, s_tmax, s_noise, count=len(self._sigmas) - 1)
            raised = float(sampler.raised(self._levels)[index])
        noise = draw(model_output, generator, index) if raised > self._sigmas[index] else None
        plan = self._plan(sampler)
        used = noise if plan.noises and plan.stochastic[index] else None
        moved = self._advance(sampler, index, sample, model_output, used)

        def estimated() -> Array:
            added = 0.0 if noise is None else s_noise * (raised**2 - float(self._sigmas[index]) ** 2) ** 0.5
            return estimate(
                plan, index, mix(sample, noise, 1.0, added) if noise is not None else sample, model_output
            )

        return answer(EulerDiscreteSchedulerOutput, moved, estimated, return_dict)

    def get_velocity(self, sample: Array, noise: Array, timesteps: Any) -> Array:
        """Alpha noise - sigma sample at the rows of ``timesteps``.

        Docs/deviations.md has what diffusers looks up there.
        """
        _reject_integer("get_velocity", timesteps)
        if "euler-get-velocity" in self._corrections:
            return velocity(self._schedule, sample, noise, host(timesteps))
        rows = [self.index_for_timestep(t) for t in np.ravel(host(timesteps))]
        product = self._schedule.alphas_cumprod[rows]
        return mix(sample, noise, like(-np.sqrt(1 - product), sample), like(np.sqrt(product), sample))


def _reject_integer(method: str, timestep: Any) -> None:
    label = str(getattr(timestep, "dtype", type(timestep).__name__))
    if "int" in label:
        raise ValueError(
            f"timestep={timestep!r} of EulerDiscreteScheduler.{method} is an integer, such as enumerate gives: "
            "pass one of scheduler.timesteps."
        )
