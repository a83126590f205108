"""`IPNDMScheduler`: iPNDM under diffusers' name, config and methods."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from anystep._array import Array
from anystep._checks import MOST_STEPS, integer, numbers
from anystep.levels import Levels
from anystep.predictions import Prediction, Velocity
from anystep.samplers._blind_ipndm import BlindIPNDM
from anystep.schedulers._config import register_to_config
from anystep.schedulers._indexed import IndexedFacade
from anystep.schedulers._outputs import SchedulerOutput
from anystep.schedulers._remembered import remembered
from anystep.schedules import Crash
from anystep.spacings import Trailing

__all__ = ["IPNDMScheduler"]


class IPNDMScheduler(IndexedFacade):
    """Improved pseudo linear multistep, drop-in for diffusers' class of that name; see `anystep.IPNDM` for the method.

    The process is `anystep.Crash`, the model predicts v and is told t in [0, 1], as in v-diffusion.

    Parameters
    ----------
    num_train_timesteps
        Number of steps until `set_timesteps` is called, >= 1; the process has no timesteps.
    trained_betas
        sigma_t of the N + 1 levels themselves, the final one included, in [0, 1]: it replaces the levels
        whatever ``num_inference_steps`` is. None takes N even steps.

    Raises
    ------
    ValueError
        If a value is none of these.

    References
    ----------
    Zhang, Chen 2022, https://arxiv.org/abs/2204.13902, and ``iplms_sample`` of
    v-diffusion; see `anystep.IPNDM`. Where diffusers' results differ: docs/deviations.md.

    Examples
    --------
    >>> scheduler = IPNDMScheduler()
    >>> scheduler.set_timesteps(4)
    >>> scheduler.timesteps.round(3)
    array([1.   , 0.651, 0.333, 0.094])
    """

    deviations: ClassVar[Mapping[str, str]] = {
        "ipndm-first-output": "the model's output at pure noise, where the first step begins, is not used",
    }
    init_noise_sigma: float = 1.0
    pndm_order: ClassVar[int] = 4
    _untouched: bool = True
    """Whether `set_timesteps` was never called."""

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, trained_betas: Any = None) -> None:
        self._configured()

    def _reset(self) -> None:
        self._begin_anew()
        if self._untouched or self.num_inference_steps is None:
            self._untouched, self.num_inference_steps = True, len(self)
            self._path = self._laid(len(self))
            self._times = self._path.cur.t
        self._hand_out()

    @remembered
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the levels of a run.

        Parameters
        ----------
        num_inference_steps
            N >= 1.
        device
            Where ``timesteps`` is wanted; see `to`. None leaves it as it was, NumPy at first.

        Raises
        ------
        ValueError
            If N is out of range. Nothing is changed then.
        """
        steps = integer("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        path = self._laid(steps)
        changes = {"num_inference_steps": steps, "_path": path, "_times": path.cur.t, "_untouched": False}
        self._take_over(device, **changes)

    def _laid(self, steps: int) -> Levels:
        schedule = Crash(u_min=1e-300)  # the least noisy of many steps is told as it is
        if self.config["trained_betas"] is None:
            return Trailing().levels(schedule, steps)
        sigma_t = numbers("trained_betas", self.config["trained_betas"])
        if len(sigma_t) < 2 or not ((sigma_t >= 0) & (sigma_t <= 1)).all():
            raise ValueError(
                f"trained_betas has shape {sigma_t.shape}: expected N + 1 sigmas in [0, 1], the final level included."
            )
        with np.errstate(divide="ignore"):
            points = schedule.at(sigma_t / np.sqrt(1 - sigma_t**2))
        return Levels(points[:-1], points[1:])

    @property
    def betas(self) -> Any:
        """sigma_t of the levels, the final one included, shape (N + 1,)."""
        return self._export(np.append(self._path.cur.sigma_t, self._path.nxt.sigma_t[-1]))

    @property
    def alphas(self) -> Any:
        """alpha_t of the levels, the final one included, shape (N + 1,)."""
        return self._export(np.append(self._path.cur.alpha_t, self._path.nxt.alpha_t[-1]))

    @property
    def _levels(self) -> Levels:
        return self._path

    @property
    def _prediction(self) -> Prediction:
        return Velocity()

    @property
    def _default(self) -> BlindIPNDM:
        used = min(len(self._earlier) + 1, self.pndm_order)
        return BlindIPNDM(used, min(used, self.pndm_order - 1), "ipndm-first-output" not in self._corrections)

    def scale_model_input(self, sample: Array, *args: Any, **kwargs: Any) -> Array:
        """The sample itself: the model takes it as it is."""
        return sample

    def step(self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True) -> Any:
        """One step to the next level.

        Parameters
        ----------
        model_output
            The model's v, shape of ``sample``.
        timestep
            One of ``timesteps``; looked up at the first call, then not read.
        sample
            x_t, any array library; never written to.
        return_dict
            Whether to return `SchedulerOutput` or a tuple.

        Returns
        -------
        SchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``.

        Raises
        ------
        IndexError
            If the steps are done, or the first timestep is not one of ``timesteps``.
        TypeError, ValueError
            If a dtype or shape differs. Nothing is changed then.
        """
        plan = self._plan_by((len(self._earlier),), lambda: self._default)
        moved = self._advance(plan, self._index(timestep), sample, model_output)
        return SchedulerOutput.of((moved,)) if return_dict else (moved,)
