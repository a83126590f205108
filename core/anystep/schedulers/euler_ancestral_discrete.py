"""`EulerAncestralDiscreteScheduler`: Euler ancestral under diffusers' name, config and methods."""

from collections.abc import Mapping
from typing import Any, ClassVar

from anystep._array import Array
from anystep._draw import draw
from anystep._update import matching
from anystep.samplers import EulerAncestral
from anystep.schedulers._config import register_to_config
from anystep.schedulers._mixin import KarrasDiffusionSchedulers
from anystep.schedulers._outputs import EulerAncestralDiscreteSchedulerOutput
from anystep.schedulers._sigma import SigmaFacade

__all__ = ["EulerAncestralDiscreteScheduler"]


class EulerAncestralDiscreteScheduler(SigmaFacade):
    """Euler ancestral, drop-in for diffusers' class of that name; see `anystep.EulerAncestral` for the method.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type
        The beta table and the model's output; see `DDIMScheduler`.
    timestep_spacing, steps_offset
        ``"linspace"`` (fractional timesteps), ``"leading"`` or ``"trailing"``.
    rescale_betas_zero_snr
        Rescale the table to (almost) zero terminal SNR.

    Raises
    ------
    NotImplementedError, ValueError
        If a value is none of these.

    References
    ----------
    ``sample_euler_ancestral`` of k-diffusion; see `anystep.EulerAncestral`. Where diffusers' results differ:
    docs/deviations.md.

    Examples
    --------
    >>> scheduler = EulerAncestralDiscreteScheduler(timestep_spacing="trailing")
    >>> scheduler.set_timesteps(4)
    >>> scheduler.timesteps
    array([999., 749., 499., 249.])
    """

    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]
    deviations: ClassVar[Mapping[str, str]] = {
        "linspace-single-step": "a single linspace step starts at timestep 0",
    }

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
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        self._configured()

    @property
    def _default(self) -> EulerAncestral:
        return EulerAncestral()

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
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
        generator
            Source of the noise; see `anystep.draw`. The last step, which ends without noise, draws too: seeds
            then give what they give in diffusers.
        return_dict
            Whether to return `EulerAncestralDiscreteSchedulerOutput` or a tuple.

        Returns
        -------
        EulerAncestralDiscreteSchedulerOutput or tuple
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
        plan = self._plan()
        matching(sample, model_output, "model_output")  # before a generator has moved on
        noise = draw(model_output, generator, index)
        used = noise if plan.noises and plan.stochastic[index] else None
        return self._answer(
            EulerAncestralDiscreteSchedulerOutput, plan, index, sample, model_output, return_dict, used
        )
