"""`FlowMatchEulerDiscreteScheduler`: Euler's method on rectified flow under diffusers' name, config and methods."""

from collections.abc import Mapping
from typing import Any, ClassVar

from anystep._array import Array, Float64, kind, like, place
from anystep._draw import draw
from anystep._per_token import next_levels, token_step
from anystep._update import matching
from anystep.samplers import DDIM, MultistepConsistency
from anystep.schedulers._config import register_to_config
from anystep.schedulers._flow import FlowFacade
from anystep.schedulers._indexed import reject_integer
from anystep.schedulers._outputs import FlowMatchEulerDiscreteSchedulerOutput
from anystep.schedulers._remembered import remembered

__all__ = ["FlowMatchEulerDiscreteScheduler"]


class FlowMatchEulerDiscreteScheduler(FlowFacade):
    """Euler's method on rectified flow, drop-in for diffusers' class of that name, as Stable Diffusion 3 and Flux use it.

    On anystep's own face it is `DDIM` (or `MultistepConsistency`, if stochastic) with `RectifiedFlow`, a spacing that may
    be `Shifted`, and ``"flow_prediction"``.

    Parameters
    ----------
    num_train_timesteps
        T >= 1: the model is told sigma T, and the default grid ends at sigma = 1 / T.
    shift
        Factor > 0 on sigma / (1 - sigma); above 1 spends more steps on noisy levels.
    use_dynamic_shifting, time_shift_type
        Whether the factor comes with each run, as e^mu (``"exponential"``) or mu (``"linear"``).
    base_shift, max_shift, base_image_seq_len, max_image_seq_len
        For pipelines, which make mu of them; not used here.
    invert_sigmas
        Whether sigmas are handed out as 1 - sigma, ascending, for a model that is told so and returns x_0 - ε.
    shift_terminal
        Last sigma at which the model is called, in (0, 1), that the grid is stretched to; None or 0 leaves it.
    use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas
        Respace the sigmas; at most one.
    stochastic_sampling
        Whether each step noises the estimate of the clean sample anew.

    Raises
    ------
    ValueError
        If a value is none of these.

    References
    ----------
    Liu, Gong, Liu 2022, https://arxiv.org/abs/2209.03003, equation 1; the shift: Esser et al. 2024,
    https://arxiv.org/abs/2403.03206, equation 23. Where diffusers' results differ: docs/deviations.md.

    Examples
    --------
    >>> import numpy as np
    >>> scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    >>> scheduler.set_timesteps(sigmas=[1.0, 0.5])
    >>> scheduler.sigmas, scheduler.timesteps
    (array([1.  , 0.75, 0.  ]), array([1000.,  750.]))
    >>> x0, noise = np.full((1, 2), 0.25), np.ones((1, 2))
    >>> x = noise
    >>> for t in scheduler.timesteps:  # the velocity of a straight path is followed exactly
    ...     x = scheduler.step(noise - x0, t, x).prev_sample
    >>> x
    array([[0.25, 0.25]])
    """

    deviations: ClassVar[Mapping[str, str]] = {
        "flow-shifted-twice": "the default grid begins from ends that are shifted already, and keeps them after set_shift",
        "flow-custom-timesteps": "timesteps without sigmas are told as given, while the levels made of them are shifted",
        "flow-inverted": "of inverted sigmas only the deterministic step knows that they are the share of the data",
        "flow-per-token-sign": "the step of per_token_timesteps has the other sign, unless it is stochastic",
        "foreign-ends": "respaced sigmas heed sigma_min and sigma_max left by another class",
    }

    _rejects_integers = True

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
    ) -> None:
        self._configured()

    def _configured(self) -> None:
        self._stochastic = bool(self.config["stochastic_sampling"])
        super()._configured()

    @remembered
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Choose the levels of a run.

        Parameters
        ----------
        num_inference_steps
            N >= 1; may be left out with one of the lists.
        device
            Where ``timesteps`` and ``sigmas`` are wanted; see `to`. None leaves them as they were, NumPy at
            first.
        sigmas
            N numbers in [0, 1], noisiest first, without the final 0. They are shifted and respaced as the config says.
        mu
            What dynamic shifting makes its factor of; needed with it, and not used without it.
        timesteps
            N numbers that the model is told; without ``sigmas``, the levels are made of them, and shifted.

        Raises
        ------
        ValueError
            If nothing says N, two arguments say another, mu is missing, or a value is out of range. Nothing is
            changed then.
        """
        self._choose(num_inference_steps, device, sigmas, mu, timesteps)

    @property
    def _default(self) -> DDIM | MultistepConsistency:
        return MultistepConsistency() if self._stochastic else DDIM()

    @property
    def _swapped(self) -> bool:
        return self._stochastic and "flow-inverted" not in self._corrections

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
        per_token_timesteps: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """One step to the next sigma.

        Parameters
        ----------
        model_output
            The model's velocity, shape of ``sample``.
        timestep
            One of ``timesteps``; looked up at the first call, then not read. Integers are refused: they would
            be positions.
        sample
            The sample, any array library; never written to.
        s_churn, s_tmin, s_tmax, s_noise
            Not used, as in diffusers.
        generator
            Source of the noise of stochastic sampling; see `anystep.draw`.
        per_token_timesteps
            Timestep of each token, shape (B, tokens), for samples of shape (B, tokens, features): each token moves to
            the next lower sigma. As in diffusers the sign is the other one, so give it the negated output; see
            `corrected`.
        return_dict
            Whether to return `FlowMatchEulerDiscreteSchedulerOutput` or a tuple.

        Returns
        -------
        FlowMatchEulerDiscreteSchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``.

        Raises
        ------
        IndexError
            If the steps are done, or the first timestep is not one of ``timesteps``.
        TypeError, ValueError
            If the timestep is an integer, or a dtype or shape differs. Nothing is changed then.
        """
        if per_token_timesteps is None and not self._stochastic:
            moved = self._advance(self._plan(), self._index(timestep), sample, model_output)
            return FlowMatchEulerDiscreteSchedulerOutput.of((moved,)) if return_dict else (moved,)
        matching(sample, model_output, "model_output")  # before a generator has moved on
        index = self._run[0]
        # Tokens find their levels by themselves, also after the last step of the others.
        if index is None or per_token_timesteps is None:
            index = self._index(timestep)
        else:
            reject_integer(self, "step", timestep)
        noise = None
        if self._stochastic:
            found = kind(sample)
            noise = draw(found.xp.astype(sample, found.work, copy=False), generator, index)
        if per_token_timesteps is None:
            plan = self._plan()
            moved = self._advance(plan, index, sample, model_output, noise if plan.noises else None)
        else:
            moved = self._moved(model_output, sample, per_token_timesteps, noise)
            self._point(index + 1)
        return FlowMatchEulerDiscreteSchedulerOutput.of((moved,)) if return_dict else (moved,)

    def _moved(self, model_output: Array, sample: Array, timesteps: Any, noise: Array | None) -> Array:
        """The sample with each token at its next level."""
        right = self._inverted and "flow-inverted" in self._corrections
        table, scale = (self._noise, -len(self)) if right else (self._sigmas, len(self))
        now, then = next_levels(self._placed(table, sample), timesteps, scale, sample)
        flips = (noise is None and "flow-per-token-sign" not in self._corrections) != right
        return token_step(sample, model_output * -1.0 if flips else model_output, now, then, noise)

    def _placed(self, table: Float64, x: Array) -> Array:
        """The table where ``x`` is; copied there once."""
        where = place(x)
        if where is None:  # JAX: a table made while tracing belongs to that trace alone
            return like(table, x)
        key = (type(x), kind(x).work, str(where))
        if key not in self._plans:
            self._plans[key] = like(table, x)
        return self._plans[key]
