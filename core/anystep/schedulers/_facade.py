"""What all diffusers-named classes share.

From config to parts, tables handed out, noise drawn. No mathematics.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from anystep._array import Array, backend, backend_names, backend_of, loaded
from anystep._checks import flag, integer, number, numbers, reals
from anystep.predictions import PREDICTIONS
from anystep.schedulers._config import ConfigMixin
from anystep.schedulers._mixin import SchedulerMixin
from anystep.schedulers._outputs import Lazy, LazyTuple, SchedulerOutput
from anystep.schedules import BETAS, BetaSchedule

if TYPE_CHECKING:
    from anystep.thresholding import Threshold

__all__ = ["AnyFacade", "Facade", "answer", "as_number"]


class AnyFacade(SchedulerMixin, ConfigMixin):
    """Abstract base of all facades, whatever their forward process."""

    order: ClassVar[int] = 1
    deviations: ClassVar[Mapping[str, str]] = {}
    """Ids of docs/deviations.md that `corrected` can turn off for this class, and what each one is."""

    _corrections: frozenset[str] = frozenset()
    _target: tuple[Any, Any] | None = None
    """(backend, device) of the tables handed out; None for NumPy."""
    num_inference_steps: int | None = None
    timesteps: Any

    @property
    def _depends(self) -> Any:
        """What beside config and arguments `set_timesteps` depends on, where it is remembered."""
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Tables are made without warnings: what overflows in them is refused by name, as not finite."""
        super().__init_subclass__(**kwargs)
        for name in {"_configured", "set_timesteps", "set_sigmas"} & vars(cls).keys():
            if not getattr(vars(cls)[name], "quiet", False):
                setattr(cls, name, np.errstate(all="ignore")(vars(cls)[name]))

    @property
    def _threshold(self) -> "Threshold | None":
        """Bound on the estimate of the clean sample."""
        return None

    def _vetted(self) -> None:
        _check_config(self._options)

    @np.errstate(all="ignore")
    def _configured(self) -> None:
        """Rebuild everything that follows from the config.

        Called by the constructor and whenever the config is replaced.
        """
        self._reset()

    @property
    def _options(self) -> Mapping[str, Any]:
        """The config's keys that this class has: others travel with a config, and are not heeded."""
        known = _keys(type(self))
        return {key: value for key, value in self.config.items() if key in known}

    def _option(self, key: str, default: Any = None) -> Any:
        """One of them, or the default where this class has no such key."""
        return self.config.get(key, default) if key in _keys(type(self)) else default

    def _reset(self) -> None:
        """Forget plans; keep timesteps if they were set."""
        raise NotImplementedError

    def corrected(self, *ids: str) -> Self:
        """A copy that follows the papers where this class follows diffusers' different but finite results.

        Parameters
        ----------
        ids
            Which of ``deviations`` to correct; all of them by default.

        Raises
        ------
        ValueError
            If an id is not one of this class.
        """
        unknown = sorted(set(ids) - set(self.deviations))
        if unknown:
            raise ValueError(
                f"ids={unknown}: expected some of {sorted(self.deviations)}; docs/deviations.md describes them."
            )
        clone = copy.copy(self)
        clone._corrections = frozenset(ids or self.deviations)
        clone.num_inference_steps = None
        clone._configured()
        return clone

    def to(self, device: Any) -> Self:
        """Hand out tables (``timesteps``, ``alphas_cumprod``, ...) as arrays of another library.

        Parameters
        ----------
        device
            A device object (`torch.device`, `jax.Device`, ...), the name of a backend such as ``"torch"``,
            or, once PyTorch is imported, a device string of PyTorch's such as ``"cuda:0"``.

        Returns
        -------
        Self
            The same scheduler.
        """
        self._target = _target(device)
        self._hand_out()
        return self

    def _hand_out(self) -> None:
        """Convert what is kept as an attribute because loops iterate over it."""
        self.timesteps = self._export(self._times)

    _times: Any

    def _export(self, values: Any) -> Any:
        """Host values as an array of the library that tables are handed out in."""
        table = np.array(values)
        if self._target is None:
            return table
        found, device = self._target
        floats = table.dtype.kind == "f"
        return found.asarray(table, dtype="float32" if floats else None, device=device)

    def __len__(self) -> int:
        """Number of training timesteps."""
        return self.config["num_train_timesteps"]

    def _number(self, timestep: Any) -> float:
        """A timestep as a number, without reading a device where it is an entry of ``timesteps``."""
        if timestep.__class__ in _WHOLE:
            return timestep
        position = self._position(timestep, self.timesteps)
        return float(self._times[position]) if position is not None else as_number("timestep", timestep)

    def _position(self, value: Any, table: Any) -> int | None:
        """Where a value lies in a table that was handed out, if it says so without being read."""
        found = (
            None if self._target is None or isinstance(value, int | float | np.number) else backend_of(value)
        )
        return None if found is None else found.position(table, value)

    def _commit(self, device: Any, build: Callable[[Any], Any], **changes: Any) -> None:
        """Make changes on a copy, build what follows from them there, and take them over only if nothing was
        raised.
        """
        trial = copy.copy(self)
        vars(trial).update(changes)
        if device is not None:
            trial._target = _target(device)
        build(trial)
        trial._hand_out()
        before = vars(self)
        changed = {
            name: value
            for name, value in vars(trial).items()
            if name in changes or name not in before or before[name] is not value
        }
        before.update(changed)
        if "_committed" in before:
            before["_committed"] = changed if device is None else {**changed, "_target": trial._target}


class Facade(AnyFacade):
    """Abstract base of schedulers on a table of betas."""

    def _configured(self) -> None:
        _ = self._threshold  # its errors are the config's
        self._schedule = self._build_schedule()
        self._reset()

    def _build_schedule(self) -> BetaSchedule:
        config = self.config
        if config["trained_betas"] is not None:
            schedule = BetaSchedule(numbers("trained_betas", config["trained_betas"]), **self._interpolation)
        else:
            ends = {key: config[key] for key in ("beta_start", "beta_end")}
            schedule = BetaSchedule.named(
                config["beta_schedule"], config["num_train_timesteps"], **ends, **self._interpolation
            )
        return (
            schedule.rescaled_to_zero_terminal_snr(self._terminal)
            if self._option("rescale_betas_zero_snr")
            else schedule
        )

    _interpolation: ClassVar[Mapping[str, Any]] = {}
    _terminal: ClassVar[float] = 0.0

    @property
    def schedule(self) -> BetaSchedule:
        """The forward process of the config, for anystep's own face."""
        return self._schedule

    @property
    def betas(self) -> Any:
        """beta_t of every training timestep, shape (T,)."""
        return self._export(self._schedule.betas)

    @property
    def alphas(self) -> Any:
        """1 - beta_t, shape (T,)."""
        return self._export(1 - self._schedule.betas)

    @property
    def alphas_cumprod(self) -> Any:
        """alpha_t² of every training timestep, shape (T,)."""
        return self._export(self._schedule.alphas_cumprod)

    @property
    def _threshold(self) -> "Threshold | None":
        if self._option("thresholding"):
            ratio, most = self.config["dynamic_thresholding_ratio"], self.config["sample_max_value"]
            if not 0 <= ratio <= 1 or not most >= 1:
                raise ValueError(
                    f"dynamic_thresholding_ratio={ratio}, sample_max_value={most}: expected a quantile in [0, 1], a bound >= 1."
                )
            from anystep.thresholding import DynamicThreshold

            return DynamicThreshold(ratio, most)
        if not self._option("clip_sample"):
            return None
        bound = self._option("clip_sample_range", 1.0)
        if not bound > 0:
            raise ValueError(
                f"clip_sample_range={bound}: expected a magnitude > 0; 1 fits images in [-1, 1]."
            )
        from anystep.thresholding import Clip  # here, because models of latents bound nothing

        return Clip(bound)


def answer(
    kind: type[SchedulerOutput], prev_sample: Array, make_estimate: Callable[[], Array], return_dict: bool
) -> SchedulerOutput | tuple[Any, ...]:
    """What `step` returns, with the estimate of the clean sample computed when it is read."""
    values = (prev_sample, make_estimate if type(make_estimate) is Lazy else Lazy(make_estimate))
    return kind.of(values) if return_dict else LazyTuple(values)


def as_number(name: str, value: Any) -> float:
    """One number, read from the device if it lies there."""
    if not isinstance(value, int | float | np.number):
        values = reals(name, value, "a number")
        if values.size != 1:
            raise ValueError(
                f"{name} has shape {values.shape}: expected one number for the whole batch; see anystep.update."
            )
        value = values.reshape(()).item()
    found = number(name, value)
    if not np.isfinite(found):
        raise ValueError(f"{name}={found}: expected a finite number.")
    return found


_WHOLE = frozenset({int, np.int64})
"""What integer ``timesteps`` of NumPy are made of: always finite."""


@cache
def _keys(cls: type) -> frozenset[str]:
    """Config keys of a class and its bases."""
    inits = (base.__init__ for base in cls.__mro__ if "__init__" in vars(base) and base is not object)
    return frozenset(name for init in inits for name in inspect.signature(init).parameters)


def _is(value: Any, text: str) -> bool:
    """Whether a value is this text; an array of it is not."""
    return isinstance(value, str) and value == text


def choice(name: str, value: Any, options: Any, error: type[Exception] = ValueError) -> None:
    """Raise unless the value is one of the options."""
    if not any(_is(value, option) for option in options):
        raise error(f"{name}={value!r}: expected one of {', '.join(map(str, options))}.")


_CHOICES: dict[str, tuple[Any, type[Exception]]] = {
    "beta_schedule": (tuple(BETAS), NotImplementedError),
    "prediction_type": (tuple(PREDICTIONS), ValueError),
    "timestep_spacing": (("leading", "trailing", "linspace"), ValueError),
    "final_sigmas_type": (("zero", "sigma_min"), ValueError),
    "interpolation_type": (("linear", "log_linear"), ValueError),
    "timestep_type": (("discrete", "continuous"), ValueError),
    "time_shift_type": (("exponential", "linear"), ValueError),
    "variance_type": (
        ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"),
        ValueError,
    ),
}
_WORDS = ("algorithm_type", "solver_type")
_FLAGS = (
    "thresholding", "clip_sample", "set_alpha_to_one", "rescale_betas_zero_snr",
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_dynamic_shifting", "invert_sigmas", "stochastic_sampling",
    "use_lu_lambdas", "use_flow_sigmas", "lower_order_final", "euler_at_final",
    "skip_prk_steps", "predict_x0",
)  # fmt: skip
_NUMBERS = (
    "beta_start", "beta_end", "clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio",
    "flow_shift", "lambda_min_clipped", "eta",
    "s_noise", "s_churn", "s_min", "s_max", "snr", "sampling_eps", "beta_min", "beta_max",
    "alpha_cum_start", "alpha_cum_end", "gamma_cum_start", "gamma_cum_end",
)  # fmt: skip
_OPTIONAL_NUMBERS = ("sigma_min", "sigma_max", "shift_terminal")
_MOST_TIMESTEPS = 10**6
"""A config file is input from strangers: tables of more entries than any model has are not made."""


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise a clear error for a value that no scheduler takes; keys that a class lacks are not looked at."""
    for name, (options, error) in _CHOICES.items():
        if name in config and not (name == "prediction_type" and _is(config[name], "original_sample")):
            choice(name, config[name], options, error)
    for name in _WORDS:
        if not isinstance(config.get(name, ""), str):
            raise ValueError(f"{name}={config[name]!r}: expected a name.")
    for name in _FLAGS:
        flag(name, config.get(name))
    for name in _NUMBERS:
        if name in config:
            number(name, config[name])
    for name in _OPTIONAL_NUMBERS:
        if config.get(name) is not None:
            number(name, config[name], "a number or None")
    if "num_train_timesteps" not in config:
        return
    count = integer("num_train_timesteps", config["num_train_timesteps"], 1, _MOST_TIMESTEPS)
    integer("steps_offset", config.get("steps_offset", 0), -count, count - 1)


def _target(device: Any) -> tuple[Any, Any] | None:
    """(backend, device object) that a device names; None for NumPy."""
    if device is None or device == "numpy":
        return None
    if isinstance(device, str):
        if device in backend_names():
            found = backend(device)
            return found, found.device(None)
        if loaded("torch") is None:
            if device == "cpu":
                return None
            raise ValueError(
                f"device={device!r}: expected a device object, or one of the backends {backend_names()}."
            )
        return (found := backend("torch")), found.device(device)
    found = backend_of(device)
    if found is None:
        raise ValueError(
            f"device={device!r}: expected a device object of one of the backends {backend_names()}."
        )
    return None if found.name == "numpy" else (found, found.device(device))
