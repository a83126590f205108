"""`UniPCMultistepScheduler`: multistep UniPC under diffusers' name, config and methods."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np

from anystep._array import Array, Float64
from anystep._checks import MOST_STEPS, integer, numbers
from anystep._update import State, update
from anystep.levels import Levels, check_descending
from anystep.plan import Plan
from anystep.samplers._late_unipc import LateUniPC
from anystep.samplers.unipc import UniPC
from anystep.schedulers._config import register_to_config
from anystep.schedulers._facade import choice
from anystep.schedulers._lambda import LambdaFacade
from anystep.schedulers._mixin import KarrasDiffusionSchedulers
from anystep.schedulers._outputs import SchedulerOutput
from anystep.schedulers._remembered import remembered
from anystep.spacings.flow import dynamic_shift, shift_flow, stretch_to_terminal
from anystep.spacings.open_end import open_flow_down

if TYPE_CHECKING:
    from anystep.thresholding import Threshold

__all__ = ["UniPCMultistepScheduler"]

_GUARD = 1e-6
"""How far below pure noise flow sigmas begin in diffusers."""


class UniPCMultistepScheduler(LambdaFacade):
    """Multistep UniPC, drop-in for diffusers' class of that name; see `anystep.UniPC` for the method.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas
        The beta table; see `DDIMScheduler`.
    solver_order
        Number of estimates that a predictor uses, >= 1; a corrector uses one more.
    prediction_type
        ``"epsilon"``, ``"sample"``, ``"v_prediction"`` or ``"flow_prediction"``.
    thresholding, dynamic_thresholding_ratio, sample_max_value
        The bound on the estimate of the clean sample; see `DDIMScheduler`. Only with ``predict_x0``.
    predict_x0
        Whether the estimate that steps integrate is x̂₀, else ε̂.
    solver_type
        ``"bh1"`` or ``"bh2"``; ``"midpoint"``, ``"heun"`` and ``"logrho"`` of sibling classes stand for ``"bh2"``.
    lower_order_final
        Whether the last steps have orders ..., 2, 1.
    disable_corrector
        Steps, counted from 0, that are not corrected.
    solver_p
        Another scheduler that predicts in place of UniP. It is given the model's output and the corrected sample, and
        `set_timesteps` sets as many steps of it: its own config must give the same timesteps.
    use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas
        Respace the sigmas; at most one.
    use_flow_sigmas, flow_shift
        Whether alpha_t = 1 - sigma_t, as in rectified flow; the factor on sigma_t / alpha_t.
    timestep_spacing, steps_offset, rescale_betas_zero_snr
        The levels.
    final_sigmas_type
        Where the last step ends: ``"zero"`` or ``"sigma_min"``.
    use_dynamic_shifting, time_shift_type
        Whether the shift is that of mu, which `set_timesteps` takes: e^mu (``"exponential"``) or mu (``"linear"``).
    sigma_min, sigma_max
        Ends of the respaced sigmas; None takes those of the table.
    shift_terminal
        Last flow sigma, to which the others are stretched; None leaves them.

    Raises
    ------
    NotImplementedError, ValueError
        If a value is none of these.

    References
    ----------
    Zhao et al. 2023, https://arxiv.org/abs/2302.04867; see `anystep.UniPC`. Where diffusers' results differ:
    docs/deviations.md.

    Examples
    --------
    >>> scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0)
    >>> scheduler.set_timesteps(3)
    >>> scheduler.timesteps.tolist(), [round(float(sigma), 3) for sigma in scheduler.sigmas]
    ([999, 857, 600], [1.0, 0.857, 0.601, 0.0])
    """

    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]
    deviations: ClassVar[Mapping[str, str]] = {
        **{key: text for key, text in LambdaFacade.deviations.items() if key != "foreign-ends"},
        "unipc-flow-start": "flow sigmas start at 1 - 1e-6 instead of pure noise",
        "unipc-last-level": "respaced and flow sigmas with final_sigmas_type='sigma_min' end where the last step starts",
        "unipc-noise-threshold": "thresholding is not heeded with predict_x0=False",
    }
    _foreign_ends: ClassVar[tuple[str, ...]] = ()
    _ends: ClassVar[tuple[str, ...]] = ("sigma_min", "sigma_max")
    this_order: int = 0
    """Number of estimates in the predictor of the step before."""
    last_sample: Any = None
    """The corrected sample that the step before started from, None before the first."""
    timestep_list: list[Any]
    """Timesteps of ``model_outputs``."""

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        predict_x0: bool = True,
        solver_type: str = "bh2",
        lower_order_final: bool = True,
        disable_corrector: list[int] = [],  # noqa: B006
        solver_p: Any = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        shift_terminal: float | None = None,
    ) -> None:
        self._configured()

    def _configured(self) -> None:
        config = self.config
        if config["solver_type"] in ("midpoint", "heun", "logrho"):
            self.register_to_config(solver_type="bh2")
        choice("solver_type", self.config["solver_type"], ("bh1", "bh2"), NotImplementedError)
        if config["shift_terminal"] is not None and not config["use_flow_sigmas"]:
            raise ValueError(
                f"shift_terminal={config['shift_terminal']}: expected None without use_flow_sigmas."
            )
        skipped, solver_p = config["disable_corrector"], config["solver_p"]
        if not isinstance(skipped, list | tuple | range):
            raise ValueError(f"disable_corrector={skipped!r}: expected a list of steps.")
        for step in cast("Sequence[Any]", skipped):
            integer("disable_corrector", step, -(2**63))
        if solver_p is not None and not (hasattr(solver_p, "step") and hasattr(solver_p, "set_timesteps")):
            raise ValueError(f"solver_p={solver_p!r}: expected None or a scheduler.")
        # Attributes of their own in diffusers, which may be set later.
        self.predict_x0 = bool(config["predict_x0"])
        self.disable_corrector: Sequence[int] = list(config["disable_corrector"])
        self.solver_p = config["solver_p"]
        self._lowers = bool(config["lower_order_final"])
        super()._configured()

    @property
    def _fresh(self) -> dict[str, Any]:
        none: list[Any] = [None] * int(self.config["solver_order"])
        return {**super()._fresh, "timestep_list": none, "last_sample": None, "this_order": 0}

    def clone(self) -> Self:
        """Copy the scheduler for a run of its own, ``solver_p`` included."""
        clone = super().clone()
        if self.solver_p is not None:
            own = getattr(self.solver_p, "clone", None)
            clone.solver_p = copy.deepcopy(self.solver_p) if own is None else own()
        return clone

    # ------------------------------------------------------------------ levels

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Choose the levels of a run: N of them by the config's spacing, or those given.

        Parameters
        ----------
        num_inference_steps
            N >= 1; not heeded with ``sigmas``.
        device
            Where ``timesteps`` and ``sigmas`` are wanted; see `to`. None leaves them as they were, NumPy at first.
        sigmas
            Strictly descending flow sigmas in (0, 1], one a step, which are shifted like others; only with
            ``use_flow_sigmas``.
        mu
            What the shift follows with ``use_dynamic_shifting``; not heeded without.

        Raises
        ------
        ValueError
            If mu or sigmas are missing or not wanted, or a value is out of range. Nothing is changed then.
        """
        solver_p = self.solver_p
        before = {} if solver_p is None else dict(vars(self))
        self._set_levels(num_inference_steps, device, sigmas, mu)
        if solver_p is not None:
            try:
                solver_p.set_timesteps(self.num_inference_steps, device=device)
            except BaseException:
                vars(self).update(before)
                raise

    @remembered
    def _set_levels(
        self, num_inference_steps: int | None, device: Any, sigmas: Any, mu: float | None
    ) -> None:
        if self.config["use_dynamic_shifting"] and mu is None:
            raise ValueError(
                "mu=None: expected a number with use_dynamic_shifting; pipelines make it of the resolution."
            )
        given = None if sigmas is None else self._custom(sigmas)
        steps = (
            integer("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
            if given is None
            else len(given)
        )
        if self._flow and not self._respacing:
            chain, told = self._flow_chain(open_flow_down(len(self), steps) if given is None else given, mu)
        else:
            chain, told = self._chain(steps, None if self._respacing else self._spaced(steps))
        self._take(chain, told, device)

    def _custom(self, sigmas: Any) -> Float64:
        """Given flow sigmas."""
        if not self._flow or self._respacing:
            wanted = "use_flow_sigmas=True" if not self._flow else f"no use_{self._respacing}_sigmas"
            raise ValueError(
                f"sigmas were given: expected {wanted}; change the config, or give num_inference_steps."
            )
        values = numbers("sigmas", sigmas)
        check_descending("sigmas", values)
        if not values.size or not (values[0] <= 1 and values[-1] > 0):
            raise ValueError(f"sigmas={values.tolist()[:5]}: expected numbers in (0, 1], noisiest first.")
        return values

    def _flow_chain(self, even: Float64, mu: float | None) -> tuple[Float64, Any]:
        """Flow sigmas, shifted, with the final one, and their timesteps."""
        config, shift = self.config, float(self.config["flow_shift"])
        if config["use_dynamic_shifting"] and mu is not None:
            shift = dynamic_shift(mu, config["time_shift_type"])
            # Summed as in diffusers, so that timesteps, which are cut to whole numbers, come out the same.
            sigmas = shift / (shift + (1 / even - 1))
        else:
            sigmas = np.array(shift_flow(even, shift))
        if config["shift_terminal"]:
            sigmas = stretch_to_terminal(sigmas, config["shift_terminal"])
        if abs(sigmas[0] - 1) < _GUARD:
            sigmas[0] = 1.0 if "unipc-flow-start" in self._corrections else sigmas[0] - _GUARD
        return np.append(sigmas, self._final(sigmas, shift)), self._whole(sigmas * len(self))

    def _final(self, sigmas: Float64, shift: float) -> float:
        if self.config["final_sigmas_type"] == "zero" or not (self._flow or self._respacing):
            return self._last_sigma
        if "unipc-last-level" not in self._corrections:
            return float(sigmas[-1])
        smallest = self._schedule.sigma_min
        if self._flow:
            smallest = (
                smallest / (1 + smallest) if self._respacing else float(shift_flow(1 / len(self), shift))
            )
        return min(smallest, float(sigmas[-1]))

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """Flow sigmas t shifted by mu, with (t / (1 - t))^sigma in place of t / (1 - t); numbers or arrays."""
        return shift_flow(t, dynamic_shift(mu, self.config["time_shift_type"]), sigma)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """Flow sigmas t with 1 - t scaled so that the last becomes ``shift_terminal``."""
        return stretch_to_terminal(t, self.config["shift_terminal"])

    # ------------------------------------------------------------------ steps

    @property
    def _integrand(self) -> Literal["x0", "noise"]:
        return "x0" if self.predict_x0 else "noise"

    @property
    def _threshold(self) -> "Threshold | None":
        heeded = self.predict_x0 or "unipc-noise-threshold" in self._corrections
        return super()._threshold if heeded else None

    @property
    def _default(self) -> LateUniPC:
        return self._sampler(self._run[0] or 0)

    def _sampler(self, index: int) -> LateUniPC:
        config = self.config
        solver = UniPC(
            config["solver_order"],
            config["solver_type"],
            self._integrand,
            skip_corrector=tuple(step for step in self.disable_corrector if step >= 0),
            lower_order_final=bool(config["lower_order_final"]),
        )
        return LateUniPC(solver, self._first(index))

    def _first(self, index: int) -> int:
        """Row at which the run began; a whole history is the same whenever it did."""
        held = self.lower_order_nums
        return max(0, index - held) if held < len(self.model_outputs) else 0

    @property
    def _earlier(self) -> tuple[Array, ...]:
        return () if self.last_sample is None else (self.last_sample, *super()._earlier)

    def step(self, model_output: Array, timestep: Any, sample: Array, return_dict: bool = True) -> Any:
        """One step to the next level, from the sample as the new output corrects it.

        Parameters
        ----------
        model_output
            The model's output, shape of ``sample``.
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
            If the steps are done.
        TypeError, ValueError
            If a dtype or shape differs, or `set_timesteps` was not called. Nothing is changed then.
        """
        index = self._begun(timestep)
        prev_sample, memory = self._moved(self._plan_at(index), index, sample, model_output)
        corrected, estimate, *_ = memory
        if self.solver_p is not None:
            prev_sample = self.solver_p.step(model_output, timestep, corrected).prev_sample
        # Nothing is raised from here on.
        self._point(index + 1)
        self._remember(estimate)
        self.timestep_list = [*self.timestep_list[1:], timestep]
        self.last_sample = corrected
        left, held = len(self._times) - index, self.lower_order_nums
        self.this_order = left if left < held and self._lowers else held
        return SchedulerOutput.of((prev_sample,)) if return_dict else (prev_sample,)

    def _plan_at(self, index: int) -> Plan:
        """The plan of a step, found again without making its sampler."""
        key = (self._first(index), *self.disable_corrector)
        return self._plan_by(key, self._sampler, index)

    def _moved(self, plan: Plan, index: int, sample: Array, model_output: Array) -> State:
        return update(plan, index, (sample, self._memory(plan, sample)), model_output)

    # ------------------------------------------------------------------ parts of a step

    def convert_model_output(
        self, model_output: Array, *args: Any, sample: Array | None = None, **kwargs: Any
    ) -> Array:
        """The estimate that the step at ``step_index`` integrates: x̂₀ with ``predict_x0``, else ε̂. Changes no state.

        Parameters
        ----------
        model_output
            The model's output.
        *args
            Timestep and sample, as older code passes them; the timestep is not heeded.
        sample
            x_t.
        """
        index, sample = self._current, _given("sample", args, 1, sample)
        return self._moved(self._plan_at(index), index, sample, model_output).memory[1]

    def multistep_uni_p_bh_update(
        self,
        model_output: Array,
        *args: Any,
        sample: Array | None = None,
        order: int | None = None,
        **kwargs: Any,
    ) -> Array:
        """The predictor's step from ``step_index``, through the latest of ``model_outputs``. Changes no state but that of
        ``solver_p``.

        Parameters
        ----------
        model_output
            The model's output, for ``solver_p``.
        *args
            Timestep, sample and order, as older code passes them; the timestep is not heeded.
        sample
            The corrected sample.
        order
            Number of estimates.
        """
        index, sample = self._current, _given("sample", args, 1, sample)
        order = self._order(_given("order", args, 2, order), index + 1)
        if self.solver_p is not None:
            return self.solver_p.step(model_output, self.timestep_list[-1], sample).prev_sample
        latest, *earlier = self.model_outputs[: -order - 1 : -1]
        return self._part(index, order, (sample, sample, *earlier), latest).x

    def multistep_uni_c_bh_update(
        self,
        this_model_output: Array,
        *args: Any,
        last_sample: Array | None = None,
        this_sample: Array | None = None,
        order: int | None = None,
        **kwargs: Any,
    ) -> Array:
        """The corrector's step to ``step_index``, through the latest of ``model_outputs`` and one more. Changes no state.

        Parameters
        ----------
        this_model_output
            The converted output at ``step_index``.
        *args
            Timestep, last sample, this sample and order, as older code passes them; the timestep is not heeded.
        last_sample
            The corrected sample of the step before.
        this_sample
            The sample that was predicted; nothing but its kind counts.
        order
            Number of earlier estimates.
        """
        index, last = self._current, _given("last_sample", args, 1, last_sample)
        this = _given("this_sample", args, 2, this_sample)
        order = self._order(_given("order", args, 3, order), index)
        memory = (this, last, *self.model_outputs[: -order - 1 : -1])
        return self._part(index, order, memory, this_model_output, corrects=True).memory[0]

    @property
    def _current(self) -> int:
        index = self._run[0]
        if index is None or index >= len(self._times):
            raise ValueError(f"step_index={index}: no step begins there; call set_timesteps, then step.")
        return index

    def _order(self, order: Any, most: int) -> int:
        """A number of estimates that ``model_outputs`` has."""
        held = sum(array is not None for array in self.model_outputs)
        return integer("order", order, 1, min(held, most), "as many as there are model_outputs")

    def _part(
        self, index: int, order: int, arrays: Sequence[Array], latest: Array, corrects: bool = False
    ) -> State:
        """The step at a row with converted outputs; ``arrays`` are x, c and earlier estimates."""
        first = index + 1 - order - corrects
        levels = Levels(self._levels.cur[first : index + 1], self._levels.nxt[first : index + 1])
        solver = UniPC(order, self.config["solver_type"], self._integrand, lower_order_final=False)
        solver = solver if corrects else replace(solver, skip_corrector=range(order))
        plan = solver.plan(levels, "sample" if self.predict_x0 else "epsilon")
        x, *memory = (*arrays, *(latest,) * plan.memories)[: 1 + plan.memories]
        return update(plan, len(plan) - 1, State(x, tuple(memory)), latest)


def _given(name: str, args: tuple[Any, ...], position: int, value: Any) -> Any:
    """An argument, by keyword or where older code passes it."""
    if value is None and len(args) <= position:
        raise ValueError(f"{name} is missing: pass it by keyword.")
    return args[position] if value is None else value
