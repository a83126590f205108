"""`LMSDiscreteScheduler`: the LMS sampler under diffusers' name, config and methods."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array
from anystep._checks import integer
from anystep.samplers._short_lms import ShortLMS
from anystep.samplers.lms import lagrange_integrals
from anystep.schedulers._config import register_to_config
from anystep.schedulers._mixin import KarrasDiffusionSchedulers
from anystep.schedulers._outputs import LMSDiscreteSchedulerOutput
from anystep.schedulers._sigma import SigmaFacade

__all__ = ["LMSDiscreteScheduler"]


class LMSDiscreteScheduler(SigmaFacade):
    """Linear multistep, drop-in for diffusers' class of that name; see `anystep.LMS` for the method.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type
        The beta table and the model's output; see `DDIMScheduler`.
    use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas
        Respace the sigmas; at most one.
    timestep_spacing, steps_offset
        ``"linspace"`` (fractional timesteps), ``"leading"`` or ``"trailing"``.

    Raises
    ------
    NotImplementedError, ValueError
        If a value is none of these.

    Notes
    -----
    Until `set_timesteps` is called, the levels are those of ``num_train_timesteps`` steps.

    References
    ----------
    ``sample_lms`` of k-diffusion; see `anystep.LMS`. Where diffusers' results differ: docs/deviations.md.

    Examples
    --------
    >>> scheduler = LMSDiscreteScheduler(use_karras_sigmas=True)
    >>> scheduler.set_timesteps(3)
    >>> [round(float(sigma), 2) for sigma in scheduler.sigmas]
    [157.41, 5.91, 0.01, 0.0]
    """

    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]
    deviations: ClassVar[Mapping[str, str]] = {
        "lms-short-history": "a run from the middle takes coefficients for a history that it does not have",
        "foreign-ends": "exponential and beta sigmas heed sigma_min and sigma_max left by another class",
        "linspace-single-step": "a single linspace step starts at timestep 0",
    }
    _whole_at_first = True
    _foreign_ends = ("exponential", "beta")

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        self._configured()

    @property
    def _default(self) -> ShortLMS:
        return self._sampler(4, self._run[0] or 0)

    def _sampler(self, order: int, index: int) -> ShortLMS:
        """The step of a row: diffusers appends to the history, then drops one call if there are more than ``order``."""
        earlier = len(self._earlier)
        held = earlier + (earlier < order)
        nodes = min(index + 1, order)
        used = min(nodes, held)
        return ShortLMS(used if "lms-short-history" in self._corrections else nodes, used, held)

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """Coefficient of one call in the step at row ``t``: the integral of its Lagrange polynomial over the step.

        Parameters
        ----------
        order
            Number of calls that the step uses, in [1, t + 1].
        t
            Row of ``sigmas``, in [0, N).
        current_order
            Which call: 0 is that of row t, 1 the one before; below ``order``.

        Raises
        ------
        ValueError
            If a number is out of range.
        """
        row = integer("t", t, 0, len(self._sigmas) - 2, "the last row that a step starts from")
        count = integer("order", order, 1, row + 1, "the rows up to t")
        which = integer("current_order", current_order, 0, count - 1, "below order")
        nodes = self._sigmas[row - np.arange(count)]
        return float(lagrange_integrals(nodes, self._sigmas[row + 1])[which])

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        order: int = 4,
        return_dict: bool = True,
    ) -> Any:
        """One step to the next sigma.

        Parameters
        ----------
        model_output
            The model's output, shape of ``sample``.
        timestep
            One of ``timesteps``; looked up at the first call, then not read.
        sample
            The sample in Karras coordinates, any array library; never written to.
        order
            Number of calls that the step uses, >= 1, as soon as there are so many.
        return_dict
            Whether to return `LMSDiscreteSchedulerOutput` or a tuple.

        Returns
        -------
        LMSDiscreteSchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``, and ``pred_original_sample``,
            computed when read.

        Raises
        ------
        IndexError
            If the steps are done, or the first timestep is not one of ``timesteps``.
        ValueError
            If ``order`` is no such integer, or a shape differs. Nothing is changed then.
        """
        index = self._index(timestep)
        order = integer("order", order)
        # A whole history is the same in every row.
        key = order, len(self._earlier), min(index + 1, order)
        plan = self._plan_by(key, self._sampler, order, index)
        return self._answer(LMSDiscreteSchedulerOutput, plan, index, sample, model_output, return_dict)
