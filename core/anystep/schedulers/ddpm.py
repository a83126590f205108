"""`DDPMScheduler`: the DDPM sampler under diffusers' name, config and methods."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array, kind
from anystep._checks import numbers
from anystep._draw import draw
from anystep._update import matching
from anystep.levels import check_descending
from anystep.samplers import DDPM
from anystep.schedulers._alpha import AlphaFacade
from anystep.schedulers._config import register_to_config
from anystep.schedulers._mixin import KarrasDiffusionSchedulers
from anystep.schedulers._outputs import DDPMSchedulerOutput
from anystep.schedulers._remembered import remembered
from anystep.variance import learned_noise, learned_range_noise, log_variance_range

__all__ = ["DDPMScheduler"]

_VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
}


class DDPMScheduler(AlphaFacade):
    """Denoising diffusion probabilistic models, drop-in for diffusers' class of that name; see `anystep.DDPM`
    for the method.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas
        The beta table; see `DDIMScheduler`.
    variance_type
        Variance of the added noise: ``"fixed_small"`` (the posterior's), ``"fixed_large"`` (beta), each also
        with ``"_log"``, which is the same computed through logarithms; ``"learned"``: the second half of the
        model's channels is its log variance; ``"learned_range"``: it is where in [-1, 1] the log variance
        lies between small and large.
    clip_sample, clip_sample_range, prediction_type, thresholding, dynamic_thresholding_ratio,
    sample_max_value
        The model's output and the bound on the estimate of the clean sample; see `DDIMScheduler`.
    timestep_spacing, steps_offset, rescale_betas_zero_snr
        The levels; see `DDIMScheduler`.

    Raises
    ------
    NotImplementedError, ValueError
        If a value is none of these.

    References
    ----------
    Ho, Jain, Abbeel 2020, https://arxiv.org/abs/2006.11239; Nichol, Dhariwal 2021,
    https://arxiv.org/abs/2102.09672, for learned variances. Where diffusers' results differ from them:
    docs/deviations.md.

    Examples
    --------
    >>> scheduler = DDPMScheduler()
    >>> scheduler.set_timesteps(timesteps=[900, 500, 10])
    >>> [scheduler.previous_timestep(t) for t in (900, 500, 10)]
    [500, 10, -1]
    """

    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]
    deviations: ClassVar[Mapping[str, str]] = {
        "ddpm-last-noise": "the last step adds noise with a large or learned variance unless it starts at t = 0",
        "linspace-single-step": "a single linspace step starts at timestep 0",
    }
    custom_timesteps: bool = False

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._configured()

    @remembered
    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None
    ) -> None:
        """Choose the timesteps of a run: N of them by the config's spacing, or those given.

        Parameters
        ----------
        num_inference_steps
            N in [1, T]; None with ``timesteps``.
        device
            Where ``timesteps`` is wanted; see `to`. None leaves it as it was, NumPy at first.
        timesteps
            Strictly descending integers in [0, T).

        Raises
        ------
        ValueError
            If both or neither are given, or a value is out of range. Nothing is changed then.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("expected one of num_inference_steps and timesteps; pass the other as None.")
        if timesteps is None:
            steps, times = num_inference_steps, self._spaced(num_inference_steps)
        else:
            steps, times = self.num_inference_steps, self._custom(timesteps)
        self._set(steps, times, device, custom_timesteps=timesteps is not None)

    def _custom(self, timesteps: Any) -> Any:
        values = numbers("timesteps", timesteps)
        check_descending("timesteps", values)
        if not values.size or (values != np.floor(values)).any() or values[0] >= len(self):
            raise ValueError(
                f"timesteps={values.tolist()[:5]}...: expected integers below num_train_timesteps={len(self)}."
            )
        return values.astype(np.int64)

    @property
    def variance_type(self) -> str:
        """The config's variance_type."""
        return self.config["variance_type"]

    @property
    def one(self) -> Any:
        """1.0, alpha² of the clean sample."""
        return self._export(1.0)

    @property
    def _usual(self) -> DDPM:
        variance: Any = _VARIANCES.get(self.variance_type, "unit")
        return DDPM(variance, last_noise="ddpm-last-noise" not in self._corrections)

    def previous_timestep(self, timestep: Any) -> int:
        """The timestep at which a step from ``timestep`` ends; -1 for the clean sample."""
        return int(self._previous(np.asarray([int(self._number(timestep))]))[0])

    def _previous(self, timesteps: Any) -> Any:
        if self.custom_timesteps or self.num_inference_steps:
            return self._next_of(timesteps)
        return timesteps - 1

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """One step from ``timestep`` down; before `set_timesteps`, to ``timestep - 1``.

        Parameters
        ----------
        model_output
            The model's output, shape of ``sample``; with a learned variance twice its channels (axis 1).
        timestep
            One of ``timesteps``: a number or a 0-d array.
        sample
            x_t, any array library; never written to.
        generator
            Source of the noise; see `anystep.draw`. No noise is drawn at t = 0.
        return_dict
            Whether to return `DDPMSchedulerOutput` or a tuple.

        Returns
        -------
        DDPMSchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``, and ``pred_original_sample``,
            computed when read.

        Raises
        ------
        ValueError
            If shapes differ, or a learned variance is missing.
        """
        model_output, predicted = self._split(model_output, sample)
        matching(sample, model_output, "model_output")  # before a generator has moved on
        t = int(self._number(timestep))
        plan, row = self._plan(None, t)
        noise = None
        if t > 0:
            noise = draw(model_output, generator, row)
            if predicted is not None:
                noise = self._learned(predicted, noise, t)
        return self._answer(DDPMSchedulerOutput, plan, row, sample, model_output, noise, return_dict)

    def _split(self, model_output: Array, sample: Array) -> tuple[Array, Array | None]:
        """The prediction and the learned variance."""
        if not self.variance_type.startswith("learned"):
            return model_output, None
        for name, array in (("sample", sample), ("model_output", model_output)):
            kind(array, name)
        channels = sample.shape[1] if sample.ndim > 1 else 0
        if not channels or model_output.ndim < 2 or model_output.shape[1] != 2 * channels:
            raise ValueError(
                f"model_output has shape {tuple(model_output.shape)}: variance_type={self.variance_type!r} expects twice the "
                f"{channels} channels of the sample; use a model that learned its variance, or variance_type='fixed_small'."
            )
        return model_output[:, :channels, ...], model_output[:, channels:, ...]

    def _learned(self, predicted: Array, noise: Array, t: int) -> Array:
        """Noise with the learned standard deviation."""
        if self.variance_type == "learned":
            return learned_noise(predicted, noise)
        small, large = log_variance_range(self._levels(np.asarray([t])))
        return learned_range_noise(predicted, noise, float(small[0]), float(large[0]))
