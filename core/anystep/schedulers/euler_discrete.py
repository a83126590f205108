"""`EulerDiscreteScheduler`: Euler's method under diffusers' name, config and methods."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array, Float64, kind, like
from anystep._checks import number, reals
from anystep._draw import draw
from anystep._update import estimate, matching
from anystep.forward import mix, velocity
from anystep.samplers._late_churn import LateChurnEuler
from anystep.schedulers._config import register_to_config
from anystep.schedulers._facade import answer
from anystep.schedulers._indexed import reject_integer
from anystep.schedulers._mixin import KarrasDiffusionSchedulers
from anystep.schedulers._outputs import EulerDiscreteSchedulerOutput
from anystep.schedulers._remembered import remembered
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
    _ends: ClassVar[tuple[str, ...]] = ("sigma_min", "sigma_max")

    _rejects_integers = True

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

    @remembered
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
            given = None if timesteps is None else self._custom_timesteps(timesteps)
            chain, times = self._chain(self._spaced(num_inference_steps) if given is None else given)
        self._take(len(times), self._told(times, chain[:-1]), chain, device)

    def _read_off(self, times: Float64) -> tuple[Float64, Float64]:
        if self.config["interpolation_type"] == "linear":
            return super()._read_off(times)
        corrected = "euler-log-linear" in self._corrections
        high, low = np.log(self._schedule.sigma_max), np.log(self._schedule.sigma_min)
        sigmas = np.exp(np.linspace(high, low, len(times) + (not corrected)))
        return sigmas, self._schedule.timestep(sigmas) if corrected else times

    @property
    def _continuous(self) -> bool:
        config = self.config
        return config["timestep_type"] == "continuous" and config["prediction_type"] == "v_prediction"

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
        index = self._index(timestep)
        if s_churn.__class__ is not float or s_churn:  # not the usual 0.0
            s_churn = number("s_churn", s_churn)
        if not s_churn:
            return self._answer(
                EulerDiscreteSchedulerOutput, self._plan(), index, sample, model_output, return_dict
            )
        others = {"s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        s_tmin, s_tmax, s_noise = (number(name, value) for name, value in others.items())
        sampler = LateChurnEuler(s_churn, s_tmin, s_tmax, s_noise, count=len(self._sigmas) - 1)
        raised = float(sampler.raised(self._levels)[index])
        level = float(self._sigmas[index])
        matching(sample, model_output, "model_output")  # before a generator has moved on
        noise = draw(model_output, generator, index) if raised > level else None
        plan = self._plan(sampler)
        used = noise if plan.noises and plan.stochastic[index] else None
        moved = self._advance(plan, index, sample, model_output, used)

        def estimated() -> Array:
            if noise is None:
                return estimate(plan, index, sample, model_output)
            found = kind(sample)
            added = s_noise * (raised**2 - level**2) ** 0.5
            raised_sample = mix(found.xp.astype(sample, found.work, copy=False), noise, 1.0, added)
            return found.xp.astype(
                estimate(plan, index, raised_sample, model_output), sample.dtype, copy=False
            )

        return answer(EulerDiscreteSchedulerOutput, moved, estimated, return_dict)

    def get_velocity(self, sample: Array, noise: Array, timesteps: Any) -> Array:
        """Alpha noise - sigma sample at the rows of ``timesteps``.

        Docs/deviations.md has what diffusers looks up there.
        """
        reject_integer(self, "get_velocity", timesteps)
        if "euler-get-velocity" in self._corrections:
            return velocity(self._schedule, sample, noise, reals("timesteps", timesteps))
        rows = [self.index_for_timestep(t) for t in np.ravel(reals("timesteps", timesteps))]
        product = self._schedule.alphas_cumprod[rows]
        return mix(sample, noise, like(-np.sqrt(1 - product), sample), like(np.sqrt(product), sample))
