"""`HeunDiscreteScheduler`: Heun's method under diffusers' name, config and methods."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array, Float64
from anystep._checks import integer
from anystep.samplers._late_heun import LateHeun
from anystep.samplers.heun import Heun
from anystep.schedulers._config import register_to_config
from anystep.schedulers._mixin import KarrasDiffusionSchedulers
from anystep.schedulers._outputs import HeunDiscreteSchedulerOutput
from anystep.schedulers._remembered import remembered
from anystep.schedulers._sigma import SigmaFacade

__all__ = ["HeunDiscreteScheduler"]


class HeunDiscreteScheduler(SigmaFacade):
    """Heun's method without churn, drop-in for diffusers' class of that name; see `anystep.Heun` for the method.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type
        The beta table and the model's output; see `DDIMScheduler`.
    use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas
        Respace the sigmas; at most one.
    clip_sample, clip_sample_range
        Whether estimates of the clean sample are bounded, in both calls of a step, and to what magnitude, > 0.
    timestep_spacing, steps_offset
        ``"linspace"`` (fractional timesteps), ``"leading"`` or ``"trailing"``.

    Raises
    ------
    NotImplementedError, ValueError
        If a value is none of these.

    Notes
    -----
    N steps are 2 N - 1 model calls, each with its own call of `step`: ``timesteps`` has an entry for each, and ``sigmas`` one
    more; every level but the first and the last is there twice. Until `set_timesteps` is called, the levels are those of
    ``num_train_timesteps`` steps.

    References
    ----------
    Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 1. Where diffusers' results differ from it:
    docs/deviations.md.

    Examples
    --------
    >>> scheduler = HeunDiscreteScheduler(beta_schedule="scaled_linear")
    >>> scheduler.set_timesteps(3)
    >>> scheduler.timesteps.tolist(), [round(float(sigma), 2) for sigma in scheduler.sigmas]
    ([999.0, 499.5, 499.5, 0.0, 0.0], [14.61, 1.62, 1.62, 0.03, 0.03, 0.0])
    """

    order: ClassVar[int] = 2
    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]
    deviations: ClassVar[Mapping[str, str]] = {
        "heun-begin": "a run begun at the second row of a pair leaves the sample as it is, to the end",
        "foreign-ends": "respaced sigmas heed sigma_min and sigma_max left by another class",
        "linspace-single-step": "a single linspace step starts at timestep 0",
    }
    _whole_at_first = True
    _foreign_ends = ("karras", "exponential", "beta")

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        clip_sample: bool | None = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        self._configured()

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of its step."""
        return not self._earlier

    @remembered
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        num_train_timesteps: int | None = None,
        timesteps: Any = None,
    ) -> None:
        """Choose the levels of a run: N of them by the config's spacing, or those given.

        Parameters
        ----------
        num_inference_steps
            N >= 1; None with ``timesteps``.
        device
            Where ``timesteps`` and ``sigmas`` are wanted; see `to`. None leaves them as they were, NumPy at
            first.
        num_train_timesteps
            Number of training timesteps that N is spaced over, in [1, T]; None takes them all.
        timesteps
            N strictly descending numbers in [0, T - 1], whose sigmas are read off the table.

        Raises
        ------
        ValueError
            If not exactly one of N and ``timesteps`` is given, or a value is out of range. Nothing is changed then.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                "expected exactly one of num_inference_steps and timesteps; pass the other as None."
            )
        if timesteps is not None and self._respacing:
            raise ValueError(
                f"timesteps were given, but the config asks for {self._respacing} sigmas: give num_inference_steps, "
                "or change the config."
            )
        if num_train_timesteps is not None:
            integer(
                "num_train_timesteps", num_train_timesteps, 1, len(self), "what the model was trained with"
            )
        if timesteps is None:
            wanted = self._spaced(num_inference_steps, num_train_timesteps)
        else:
            wanted = self._custom_timesteps(timesteps)
        chain, times = self._chain(wanted)
        self._take(len(times), times, chain, device)

    def _by_call(self, times: Float64, chain: Float64) -> tuple[Float64, Float64]:
        return times.repeat(2)[1:], chain.repeat(2)[1:-1]

    def _by_step(self) -> tuple[Float64, Float64]:
        return self._times[::2], np.append(self._sigmas[::2], self._sigmas[-1])

    @property
    def _default(self) -> Heun:
        return Heun()

    def step(self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True) -> Any:
        """One model call's worth: a step to the next sigma, or its correction from the model's output there.

        Parameters
        ----------
        model_output
            The model's output, shape of ``sample``.
        timestep
            One of ``timesteps``; looked up at the first call, then not read.
        sample
            The sample in Karras coordinates, any array library; never written to. A correction starts from the sample of the
            call before.
        return_dict
            Whether to return `HeunDiscreteSchedulerOutput` or a tuple.

        Returns
        -------
        HeunDiscreteSchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``, and ``pred_original_sample``,
            computed when read.

        Raises
        ------
        IndexError
            If the steps are done, or the first timestep is not one of ``timesteps``.
        ValueError
            If a shape differs. Nothing is changed then.
        """
        index = self._index(timestep)
        corrects = not self.state_in_first_order
        late = corrects != bool(index % 2)
        plan = self._plan(LateHeun(corrects) if late else None)
        keeps = not corrects and not (late and "heun-begin" in self._corrections)
        return self._answer(
            HeunDiscreteSchedulerOutput, plan, index, sample, model_output, return_dict, keeps=keeps
        )
