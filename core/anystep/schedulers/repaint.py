"""`RePaintScheduler`: inpainting under diffusers' name, config and methods."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

import numpy as np

from anystep._array import Array, kind
from anystep._checks import integer
from anystep._draw import draw
from anystep._update import estimate, matching
from anystep.repaint import check_over, inpaint_step, renoise, undo_step, walk
from anystep.samplers import DDIM
from anystep.schedulers._alpha import AlphaFacade
from anystep.schedulers._config import register_to_config
from anystep.schedulers._facade import answer
from anystep.schedulers._outputs import Lazy, RePaintSchedulerOutput
from anystep.schedulers._remembered import remembered

__all__ = ["RePaintScheduler"]


class RePaintScheduler(AlphaFacade):
    """Inpainting with a model that knows nothing of masks, drop-in for diffusers' class of that name; see `anystep.inpaint`.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule
        The beta table; see `DDIMScheduler`.
    eta
        Scale of the added noise's standard deviation, in [0, 1]; the paper's is 1. May be assigned to between runs.
    trained_betas
        The table itself, shape (T,).
    clip_sample
        Whether the estimate of the clean sample is clipped to [-1, 1].

    Raises
    ------
    NotImplementedError, ValueError
        If a value is none of these.

    References
    ----------
    Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865. Where diffusers' results differ from it: docs/deviations.md.

    Examples
    --------
    Where the next timestep is higher, `undo_step` is called with the one before it, else `step` with it.

    >>> scheduler = RePaintScheduler()
    >>> scheduler.set_timesteps(5, jump_length=2, jump_n_sample=2)
    >>> scheduler.timesteps
    array([800, 600, 400, 600, 800, 600, 400, 200,   0, 200, 400, 200,   0])
    """

    deviations: ClassVar[Mapping[str, str]] = {
        "repaint-shared-noise": "known and unknown part get the same noise",
        "repaint-undo-level": "undo_step ends T // N - 1 training steps above the level at which the next step starts",
        "repaint-jump-level": "jumps start one level lower, the last of them at the clean picture",
    }
    _planned: Any = None
    _drawn: int = 0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        eta: float = 0.0,
        trained_betas: Any = None,
        clip_sample: bool = True,
    ) -> None:
        self._configured()
        self.eta = eta

    @remembered
    def set_timesteps(
        self, num_inference_steps: int, jump_length: int = 10, jump_n_sample: int = 10, device: Any = None
    ) -> None:
        """Choose the levels of a run, in the order in which it visits them.

        Parameters
        ----------
        num_inference_steps
            N >= 1; more than T count as T.
        jump_length
            Levels of a jump back, >= 1.
        jump_n_sample
            How often each stretch of that length is sampled; 1 is no jump.
        device
            Where ``timesteps`` is wanted; see `to`. None leaves it as it was, NumPy at first.

        Raises
        ------
        ValueError
            If a number is out of range. Nothing is changed then.
        """
        steps = min(integer("num_inference_steps", num_inference_steps), len(self))
        stride = len(self) // steps
        shift = int("repaint-jump-level" in self._corrections)
        times = np.asarray(walk(steps, jump_length, jump_n_sample, shift), dtype=np.int64) * stride
        planned = np.arange(steps)[::-1] * stride
        self._set(steps, times, device, _planned=planned, _drawn=0)

    @property
    def one(self) -> Any:
        """1.0, alpha² of the clean sample."""
        return self._export(1.0)

    @property
    def _usual(self) -> DDIM:
        return DDIM()

    @property
    def _plan_times(self) -> Any:
        return self._times if self._planned is None else self._planned

    def _previous(self, timesteps: Any) -> Any:
        return timesteps - self.config["num_train_timesteps"] // (self.num_inference_steps or 1)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        original_image: Array,
        mask: Array,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """One step from ``timestep`` down, with the known part put in place.

        Parameters
        ----------
        model_output
            The noise as the model predicts it, shape of ``sample``.
        timestep
            One of ``timesteps``: a number or a 0-d array.
        sample
            x_t, any array library; never written to.
        original_image
            The picture; broadcasts over ``sample``.
        mask
            1 where it is kept, 0 where it is painted; broadcasts over ``sample``.
        generator
            Source of the noise; see `anystep.draw`.
        return_dict
            Whether to return `RePaintSchedulerOutput` or a tuple.

        Returns
        -------
        RePaintSchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``, and ``pred_original_sample``, computed when read.

        Raises
        ------
        ValueError
            If `set_timesteps` was not called, or a shape differs.
        """
        plan, row = self._plan(_sampler(float(self.eta)), self._told(timestep))
        matching(sample, model_output, "model_output")  # before a generator has moved on
        kind(original_image, "original_image")
        for name, part in (("original_image", original_image), ("mask", mask)):
            check_over(name, part, sample)
        known_noise, fresh = draw(model_output, generator, self._drawn), None
        if plan.stochastic[row]:
            apart = "repaint-shared-noise" in self._corrections
            fresh = draw(model_output, generator, self._drawn + 1) if apart else known_noise
        moved = inpaint_step(plan, row, sample, model_output, original_image, mask, known_noise, fresh)
        self._drawn += 1 + (fresh is not None and fresh is not known_noise)
        return answer(
            RePaintSchedulerOutput, moved, Lazy(estimate, plan, row, sample, model_output), return_dict
        )

    def undo_step(self, sample: Array, timestep: Any, generator: Any = None) -> Array:
        """Back up one level: what `step` at ``timestep`` has left, noised again.

        Parameters
        ----------
        sample
            Any array library; never written to.
        timestep
            One of ``timesteps``.
        generator
            Source of the noise; T // N arrays are drawn.

        Returns
        -------
        Array
            Shape, dtype and device of ``sample``.
        """
        t = self._told(timestep)
        if "repaint-undo-level" in self._corrections:
            plan, row = self._plan(None, t)
            count, moved = 1, undo_step(plan, row, sample, draw(sample, generator, self._drawn))
        else:
            count = len(self) // (self.num_inference_steps or 1)
            betas = self._schedule.betas[t : t + count]
            if t < 0 or len(betas) < count:
                raise ValueError(
                    f"timestep={t}: expected one of scheduler.timesteps, at most {len(self) - count}."
                )
            moved = renoise(sample, betas, (draw(sample, generator, self._drawn + k) for k in range(count)))
        self._drawn += count
        return moved

    def _told(self, timestep: Any) -> int:
        if self.num_inference_steps is None:
            raise ValueError("num_inference_steps=None: call set_timesteps(N) before step.")
        return int(self._number(timestep))

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Any) -> NoReturn:
        """Not for training, as in diffusers: `DDPMScheduler.add_noise` is."""
        raise NotImplementedError("RePaintScheduler has no add_noise: train with DDPMScheduler.add_noise.")


_sampler = lru_cache(maxsize=64)(DDIM)
