"""`VQDiffusionScheduler`: reverse steps on classes, under diffusers' name, config and methods."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from anystep._array import Array, kind
from anystep._checks import integer
from anystep._draw import draw_uniform
from anystep._token_arrays import TINY, working
from anystep.schedulers._config import register_to_config
from anystep.schedulers._facade import AnyFacade
from anystep.schedulers._outputs import VQDiffusionSchedulerOutput
from anystep.schedules.vq import MaskAndReplace, TokenStep, Transition
from anystep.spacings._timesteps import trailing
from anystep.tokens import (
    apply_transition,
    gumbel_max,
    log_transition_to,
    q_posterior,
    sample_race,
    sample_sparse,
)

__all__ = ["VQDiffusionScheduler"]


class VQDiffusionScheduler(AnyFacade):
    """VQ-diffusion, drop-in for diffusers' class of that name; see `anystep.MaskAndReplace` and `anystep.tokens`.

    Parameters
    ----------
    num_vec_classes
        Number of classes with the mask, which is the last, >= 2.
    num_train_timesteps
        T >= 1.
    alpha_cum_start, alpha_cum_end
        Probability that a token is kept from the clean sample to the first and to the last timestep.
    gamma_cum_start, gamma_cum_end
        Probability that it is masked; the rest is replacement.

    Raises
    ------
    ValueError
        If a value is out of range, or the probabilities do not fit together.

    References
    ----------
    Gu et al., 2021, https://arxiv.org/abs/2111.14822. Where diffusers differs from it: docs/deviations.md.

    Examples
    --------
    From masks alone to tokens, with a model that predicts class 1 for every other token and class 0 or 2 for the rest:

    >>> scheduler = VQDiffusionScheduler(num_vec_classes=4)
    >>> p = np.array([[0.0, 1, 0], [0.5, 0, 0.5]] * 3).T[None] + 1e-9
    >>> sample, rng = np.full((1, 6), scheduler.mask_class), np.random.default_rng(0)
    >>> for t in scheduler.timesteps:
    ...     sample = scheduler.step(np.log(p / p.sum(axis=1)), t, sample, generator=rng).prev_sample
    >>> sample[0, ::2].tolist(), bool(np.isin(sample[0, 1::2], [0, 2]).all())
    ([1, 1, 1], True)
    """

    deviations: ClassVar[Mapping[str, str]] = {
        "vq-respacing": "N < T steps are the last N of the T, and begin at timestep N - 1 instead of at noise",
        "vq-log-zero": "the impossible has probability 1e-30, and unmasked tokens change where nothing is replaced",
    }
    _sparse: bool = False

    @register_to_config
    def __init__(
        self,
        num_vec_classes: int,
        num_train_timesteps: int = 100,
        alpha_cum_start: float = 0.99999,
        alpha_cum_end: float = 0.000009,
        gamma_cum_start: float = 0.000009,
        gamma_cum_end: float = 0.99999,
    ) -> None:
        self._configured()

    def _reset(self) -> None:
        config, steps = self._options, self.num_inference_steps
        integer("num_vec_classes", config["num_vec_classes"], 2, 2**31 - 1)
        ends = ("alpha_cum_start", "alpha_cum_end", "gamma_cum_start", "gamma_cum_end")
        train = config["num_train_timesteps"]
        self._process = MaskAndReplace(
            config["num_vec_classes"], train, **{name: config[name] for name in ends}
        )
        self._steps: dict[int, TokenStep] = {}
        if steps is None or steps > train:
            self.num_inference_steps, self._times = None, np.arange(train)[::-1]
        self._hand_out()

    @property
    def process(self) -> MaskAndReplace:
        """The forward process of the config, for anystep's own face."""
        return self._process

    @property
    def num_embed(self) -> int:
        """Number of classes with the mask."""
        return self._process.classes

    @property
    def mask_class(self) -> int:
        """The mask: the last class."""
        return self._process.classes - 1

    @property
    def log_at(self) -> Any:
        """Logarithm of the probability that a step keeps a token, shape (T,)."""
        return self._export(self._process.log_single.log_a)

    @property
    def log_bt(self) -> Any:
        """Logarithm of the probability that a step replaces it by one given class, shape (T,)."""
        return self._export(self._process.log_single.log_b)

    @property
    def log_ct(self) -> Any:
        """Logarithm of the probability that a step masks it, shape (T,)."""
        return self._export(self._process.log_single.log_c)

    @property
    def log_cumprod_at(self) -> Any:
        """As `log_at`, from the clean sample on; shape (T + 1,), the last entry is the clean sample's."""
        return self._export(self._process.log_cumulative.log_a)

    @property
    def log_cumprod_bt(self) -> Any:
        """As `log_bt`, from the clean sample on; shape (T + 1,)."""
        return self._export(self._process.log_cumulative.log_b)

    @property
    def log_cumprod_ct(self) -> Any:
        """As `log_ct`, from the clean sample on; shape (T + 1,)."""
        return self._export(self._process.log_cumulative.log_c)

    def sparse(self) -> Self:
        """A copy whose `step` draws by `anystep.tokens.sample_sparse`.

        From the same distribution, with other draws for a seed: two random numbers a token instead of one a class,
        and of the model's output only the columns of tokens that change are read.
        """
        clone = self.clone()
        clone._sparse = True
        return clone

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Choose the timesteps of a run: N - 1, ..., 0; corrected, N from T - 1 down.

        Parameters
        ----------
        num_inference_steps
            N in [1, T].
        device
            Where tables are wanted; see `to`. None leaves it as it was, NumPy at first.

        Raises
        ------
        ValueError
            If a value is out of range. Nothing is changed then.
        """
        train = self.config["num_train_timesteps"]
        why = "num_train_timesteps: the model knows no more"
        steps = integer("num_inference_steps", num_inference_steps, 1, train, why)
        times = np.arange(steps)[::-1]
        if "vq-respacing" in self._corrections:
            times = trailing(train, steps).astype(np.int64)
        self._commit(device, lambda trial: None, num_inference_steps=steps, _times=times, _steps={})

    def _step_from(self, t: int) -> tuple[TokenStep, bool]:
        """What a step from a timestep needs, and whether it ends at the clean sample."""
        nxt = t - 1
        if "vq-respacing" in self._corrections and self.num_inference_steps is not None:
            nxt = int(max(self._times[self._times < t], default=-1))
        if t not in self._steps:
            self._steps[t] = self._process.step(self._timestep(t, 0), nxt)
        return self._steps[t], nxt < 0

    def _timestep(self, timestep: Any, low: int) -> int:
        """A timestep as an integer in [low, T - 1]."""
        number = self._number(timestep)
        last = self.config["num_train_timesteps"] - 1
        if number != int(number) or not low <= number <= last:
            raise ValueError(
                f"t={number:g}: expected an integer in [{low}, {last}]; see scheduler.timesteps."
            )
        return int(number)

    @property
    def _floor(self) -> float:
        return 0.0 if "vq-log-zero" in self._corrections else TINY

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """Draw the tokens of the timestep before.

        Parameters
        ----------
        model_output
            Log-probabilities of the clean tokens, shape (B, K, L) with K = num_vec_classes - 1.
        timestep
            One of ``timesteps``: a number or a 0-d array.
        sample
            Tokens x_t, shape (B, L), any integer dtype, of the library of ``model_output``; never written to.
        generator
            Source of uniform numbers, B (K + 1) L of them in float32 as in diffusers (B K L where the step ends at the
            clean sample; for `sparse` 2 B L); see `anystep.draw`.
        return_dict
            Whether to return `VQDiffusionSchedulerOutput` or a tuple.

        Returns
        -------
        VQDiffusionSchedulerOutput or tuple
            ``prev_sample``, with shape, dtype and device of ``sample``.

        Raises
        ------
        ValueError, TypeError
            If shapes, dtypes or libraries do not fit, or the timestep is none.
        """
        t = self._timestep(timestep, 0)
        step, last = self._step_from(t)
        self._check(model_output, sample, ("model_output", "sample"))
        drawn = self._draw(model_output, sample, None if last else step, generator, t)
        return VQDiffusionSchedulerOutput(prev_sample=drawn) if return_dict else (drawn,)

    def _draw(self, log_p_x0: Array, x_t: Array, step: TokenStep | None, generator: Any, index: int) -> Array:
        size, classes, length = log_p_x0.shape
        if self._sparse:
            return sample_sparse(
                log_p_x0, x_t, step, draw_uniform(log_p_x0, (size, 2, length), generator, index)
            )
        # Drawn in float32 whatever the model's dtype, as in diffusers.
        double = str(log_p_x0.dtype).endswith("float64")
        xp = kind(log_p_x0).xp
        like = xp.astype(log_p_x0[:1, :1, :1], xp.float32) if double else log_p_x0
        uniform = draw_uniform(like, (size, classes + (step is not None), length), generator, index)
        if step is not None and self._floor and step.cur.log_b == -np.inf:
            # Only here can the probability that diffusers gives to the impossible be drawn.
            log_p = q_posterior(log_p_x0, x_t, step, floor=self._floor)
            return xp.astype(gumbel_max(log_p, uniform), x_t.dtype, copy=False)
        return sample_race(log_p_x0, x_t, step, uniform)

    def _check(self, log_p_x0: Array, x_t: Array, names: tuple[str, str] = ("log_p_x_0", "x_t")) -> None:
        """Raise for a wrong number of classes; for wrong tokens only where they are on the host."""
        working(log_p_x0, x_t, names)  # before a generator has moved on
        if log_p_x0.ndim == 3 and log_p_x0.shape[1] != self.mask_class:
            raise ValueError(
                f"{names[0]} has shape {tuple(log_p_x0.shape)}: expected (B, {self.mask_class}, L), one row for each class but "
                "the mask; the axis of classes is the second."
            )
        outside = isinstance(x_t, np.ndarray) and x_t.size and (x_t.min() < 0 or x_t.max() > self.mask_class)
        if outside:
            raise ValueError(
                f"{names[1]} has classes outside [0, {self.mask_class}]: expected tokens, the last is the mask."
            )

    def q_posterior(self, log_p_x_0: Array, x_t: Array, t: Any) -> Array:
        """Log-probabilities of the tokens at timestep t - 1; see `anystep.tokens.q_posterior`.

        Parameters
        ----------
        log_p_x_0
            Log-probabilities of the clean tokens, shape (B, K, L).
        x_t
            Tokens at timestep t, shape (B, L).
        t
            Timestep in [0, T - 1].

        Returns
        -------
        Array
            Shape (B, K + 1, L), in float32 or the wider dtype of ``log_p_x_0``.
        """
        step, _ = self._step_from(self._timestep(t, 0))
        self._check(log_p_x_0, x_t)
        return q_posterior(log_p_x_0, x_t, step, floor=self._floor)

    def log_Q_t_transitioning_to_known_class(
        self, *, t: Any, x_t: Array, log_onehot_x_t: Array, cumulative: bool
    ) -> Array:
        """Log-probability of each earlier class to have become the one seen; see `anystep.tokens.log_transition_to`.

        Parameters
        ----------
        t
            Timestep in [0, T - 1].
        x_t
            Tokens at timestep t, shape (B, L).
        log_onehot_x_t
            Logarithm of their one-hot vectors, shape (B, K + 1, L).
        cumulative
            Whether the earlier class is the clean one, or that at t - 1.

        Returns
        -------
        Array
            Shape (B, K, L) if cumulative, else (B, K + 1, L).
        """
        table = self._process.log_cumulative if cumulative else self._process.log_single
        entry = Transition(*(float(part[self._timestep(t, 0)]) for part in table))
        return log_transition_to(x_t, log_onehot_x_t, entry, cumulative=cumulative)

    def apply_cumulative_transitions(self, q: Array, t: Any) -> Array:
        """Log-probabilities at timestep t, shape (B, K + 1, L), from those of clean tokens, (B, K, L); -1 is clean."""
        at = self._timestep(t, -1)
        return apply_transition(q, self._process.transition(-1, at))
