"""`DDIMScheduler`: the DDIM sampler under diffusers' name, config and methods."""

from collections.abc import Mapping
from typing import Any, ClassVar

from anystep._array import Array
from anystep._checks import flag, number
from anystep._draw import draw
from anystep._update import matching
from anystep.samplers import DDIM
from anystep.schedulers._alpha import AlphaFacade
from anystep.schedulers._config import register_to_config
from anystep.schedulers._mixin import KarrasDiffusionSchedulers
from anystep.schedulers._outputs import DDIMSchedulerOutput
from anystep.schedulers._remembered import remembered

__all__ = ["DDIMScheduler"]


class DDIMScheduler(AlphaFacade):
    """Denoising diffusion implicit models, drop-in for diffusers' class of that name; see `anystep.DDIM` for
    the method.

    Parameters
    ----------
    num_train_timesteps
        Number T of timesteps the model was trained at.
    beta_start, beta_end
        Ends of the beta table, in [0, 1].
    beta_schedule
        ``"linear"``, ``"scaled_linear"``, ``"squaredcos_cap_v2"``, ``"sigmoid"``, ``"laplace"`` or ``"exp"``.
    trained_betas
        The table itself, shape (T,); overrides the three above.
    clip_sample, clip_sample_range
        Whether, and to what magnitude, the estimate of the clean sample is clipped.
    set_alpha_to_one
        Whether the last step ends at the clean sample (alpha² = 1) or at timestep 0.
    steps_offset
        Added to the timesteps of leading spacing.
    prediction_type
        What the model returns: ``"epsilon"``, ``"sample"``, ``"v_prediction"``, or another name of
        `anystep.predictions`.
    thresholding, dynamic_thresholding_ratio, sample_max_value
        Dynamic thresholding of the estimate; see `anystep.DynamicThreshold`. Takes precedence over clipping.
    timestep_spacing
        ``"leading"``, ``"trailing"`` or ``"linspace"``.
    rescale_betas_zero_snr
        Rescale the table to zero terminal SNR.

    Raises
    ------
    NotImplementedError, ValueError
        If a value is none of these.

    References
    ----------
    Song, Meng, Ermon 2020, https://arxiv.org/abs/2010.02502. Where diffusers' results differ from it:
    docs/deviations.md.

    Examples
    --------
    >>> scheduler = DDIMScheduler(beta_schedule="scaled_linear")
    >>> scheduler.set_timesteps(4)
    >>> scheduler.timesteps
    array([750, 500, 250,   0])
    """

    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]
    deviations: ClassVar[Mapping[str, str]] = {
        "ddim-previous-timestep": "steps end at t - T // N instead of at the next timestep",
        "linspace-single-step": "a single linspace step starts at timestep 0",
    }

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._configured()

    @remembered
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the N timesteps of a run.

        Parameters
        ----------
        num_inference_steps
            N in [1, T].
        device
            Where ``timesteps`` is wanted; see `to`. None leaves it as it was, NumPy at first.

        Raises
        ------
        ValueError
            If N is out of range, or the spacing has no such timesteps. Nothing is changed then.
        """
        self._set(num_inference_steps, self._spaced(num_inference_steps), device)

    @property
    def _usual(self) -> DDIM:
        return DDIM()

    def _previous(self, timesteps: Any) -> Any:
        if "ddim-previous-timestep" in self._corrections:
            return self._next_of(timesteps)
        steps = self.num_inference_steps or self.config["num_train_timesteps"]
        return timesteps - self.config["num_train_timesteps"] // steps

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        variance_noise: Array | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step from ``timestep`` down.

        Parameters
        ----------
        model_output
            The model's output, shape of ``sample``.
        timestep
            One of ``timesteps``: a number or a 0-d array.
        sample
            x_t, any array library; never written to.
        eta
            Scale of the added noise's standard deviation, in [0, 1]: 0 is deterministic, 1 is DDPM.
        use_clipped_model_output
            Take the noise estimate from the clipped estimate of the clean sample.
        generator
            Source of the noise if ``eta`` > 0: see `anystep.draw`.
        variance_noise
            The noise itself, instead of a generator.
        return_dict
            Whether to return `DDIMSchedulerOutput` or a tuple.

        Returns
        -------
        DDIMSchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``, and ``pred_original_sample``,
            computed when read.

        Raises
        ------
        ValueError
            If `set_timesteps` was not called, shapes differ, or both a generator and noise are given with
            ``eta`` > 0.
        """
        if self.num_inference_steps is None:
            raise ValueError("num_inference_steps=None: call set_timesteps(N) before step.")
        sampler = None
        if eta.__class__ is not float or eta or use_clipped_model_output is not False:  # not the usual step
            sampler = DDIM(number("eta", eta), flag("use_clipped_model_output", use_clipped_model_output))
        plan, row = self._plan(sampler, int(self._number(timestep)))
        noise = None
        if eta > 0:
            if generator is not None and variance_noise is not None:
                raise ValueError(
                    "generator and variance_noise were both given: pass one; the noise is used as it is."
                )
            matching(sample, model_output, "model_output")  # before a generator has moved on
            noise = draw(model_output, generator, row) if variance_noise is None else variance_noise
        return self._answer(DDIMSchedulerOutput, plan, row, sample, model_output, noise, return_dict)

    def _get_variance(self, timestep: int, prev_timestep: int) -> Any:
        """Posterior variance between two timesteps, as pipelines ask for it."""
        final = self._final_alpha_cumprod
        a, b = (
            float(self._schedule.alphas_cumprod[int(t)]) if t >= 0 else final
            for t in (timestep, prev_timestep)
        )
        return self._export((1 - b) / (1 - a) * (1 - a / b))
