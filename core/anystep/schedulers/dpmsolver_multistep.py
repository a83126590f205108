"""`DPMSolverMultistepScheduler`: multistep DPM-Solver under diffusers' name, config and methods."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from anystep._array import Array, Float64, kind
from anystep._checks import MOST_STEPS, integer, reals
from anystep._draw import draw
from anystep._update import State, matching, update
from anystep.plan import Plan
from anystep.samplers._held_dpm import HeldDPMSolver
from anystep.samplers.dpm_solver import DPMSolver
from anystep.schedulers._config import register_to_config
from anystep.schedulers._facade import choice
from anystep.schedulers._lambda import LambdaFacade
from anystep.schedulers._mixin import KarrasDiffusionSchedulers
from anystep.schedulers._outputs import SchedulerOutput
from anystep.schedulers._remembered import remembered
from anystep.spacings.flow import shift_flow

__all__ = ["DPMSolverMultistepScheduler"]

_ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
_COERCED = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"),
}
"""Values of sibling classes, and what stands for them here."""


class DPMSolverMultistepScheduler(LambdaFacade):
    """Multistep DPM-Solver and DPM-Solver++, drop-in for diffusers' class of that name; see `anystep.DPMSolver` for the
    method.

    Parameters
    ----------
    num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas
        The beta table; see `DDIMScheduler`.
    solver_order
        Number of estimates that a step uses, 1 to 3; more count as 3.
    prediction_type
        ``"epsilon"``, ``"sample"``, ``"v_prediction"`` or ``"flow_prediction"``.
    thresholding, dynamic_thresholding_ratio, sample_max_value
        The bound on the estimate of the clean sample; see `DDIMScheduler`.
    algorithm_type
        ``"dpmsolver++"`` integrates x̂₀, ``"dpmsolver"`` ε̂; ``"sde-dpmsolver++"`` and ``"sde-dpmsolver"`` solve the SDE.
    solver_type
        ``"midpoint"`` or ``"heun"``, for steps of two estimates.
    lower_order_final, euler_at_final
        With fewer than 15 steps, end with two estimates, then one; end with one.
    use_karras_sigmas, use_lu_lambdas, use_exponential_sigmas, use_beta_sigmas
        Respace the sigmas; the first that is set counts, and two of the three other than lu are refused.
    use_flow_sigmas, flow_shift
        Whether alpha_t = 1 - sigma_t, as in rectified flow; the factor on sigma_t / alpha_t.
    final_sigmas_type
        Where the last step ends: ``"zero"``, only with ++, or ``"sigma_min"``.
    lambda_min_clipped
        Leave out timesteps whose log(alpha_t / sigma_t) is below.
    variance_type
        ``"learned"`` or ``"learned_range"``: the model returns a variance too, in channels that are not used.
    timestep_spacing, steps_offset, rescale_betas_zero_snr
        The levels.
    use_dynamic_shifting, time_shift_type
        Whether `set_timesteps` takes mu, and whether it stands for e^mu (``"exponential"``) or mu (``"linear"``).

    Raises
    ------
    NotImplementedError, ValueError
        If a value is none of these.

    References
    ----------
    Lu et al. 2022, https://arxiv.org/abs/2206.00927 and https://arxiv.org/abs/2211.01095; see `anystep.DPMSolver`.
    Where diffusers' results differ: docs/deviations.md.

    Examples
    --------
    >>> scheduler = DPMSolverMultistepScheduler(use_karras_sigmas=True)
    >>> scheduler.set_timesteps(3)
    >>> scheduler.timesteps.tolist(), [round(float(sigma), 2) for sigma in scheduler.sigmas]
    ([999, 593, 0], [157.41, 5.91, 0.01, 0.0])
    """

    _compatibles: ClassVar[list[str]] = [e.name for e in KarrasDiffusionSchedulers]
    deviations: ClassVar[Mapping[str, str]] = {
        **LambdaFacade.deviations,
        "dpm-third-order": "the third-order term is half of what it should be, and of the wrong sign for sde-dpmsolver++",
        "dpm-flow-sigma-min": "with flow sigmas, final_sigmas_type='sigma_min' ends at the karras sigma of the beta table",
        "dpm-sticky-mu": "mu counts for later calls of set_timesteps that are given none",
    }

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
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        self._configured()

    @property
    def _options(self) -> Mapping[str, Any]:
        options = super()._options
        return {key: value for key, value in options.items() if key != "variance_type" or value is not None}

    def _configured(self) -> None:
        for key, others in _COERCED.items():
            if self.config[key] in others:
                self.register_to_config(**{key: others[self.config[key]]})
        config = self.config
        self._learned = (config["variance_type"] or "").startswith("learned")
        choice("algorithm_type", config["algorithm_type"], _ALGORITHMS, NotImplementedError)
        choice("solver_type", config["solver_type"], ("midpoint", "heun"), NotImplementedError)
        if self._integrand == "noise" and config["final_sigmas_type"] == "zero":
            raise ValueError(
                f"final_sigmas_type='zero' with algorithm_type={config['algorithm_type']!r}: expected 'sigma_min'; "
                "or choose 'dpmsolver++' or 'sde-dpmsolver++'."
            )
        super()._configured()

    @property
    def _integrand(self) -> Literal["x0", "noise"]:
        return "x0" if self.config["algorithm_type"].endswith("++") else "noise"

    @remembered
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Choose the levels of a run: N of them by the config's spacing, or those given.

        Parameters
        ----------
        num_inference_steps
            N >= 1; None with ``timesteps``.
        device
            Where ``timesteps`` and ``sigmas`` are wanted; see `to`. None leaves them as they were, NumPy at first.
        mu
            Shift of flow sigmas that follows the resolution, with ``use_dynamic_shifting``: e^mu takes the place of
            ``flow_shift``, for later calls too.
        timesteps
            Descending whole numbers in [0, T - 1]; with flow sigmas, sigma is t / T.

        Raises
        ------
        ValueError
            If both or neither are given, or a value is out of range. Nothing is changed then.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("expected one of num_inference_steps and timesteps; pass the other as None.")
        kept = None if "dpm-sticky-mu" in self._corrections else self._mu_shift
        moved = kept if mu is None else self._shift_of(mu)
        shift = float(self.config["flow_shift"]) if moved is None else moved
        if timesteps is not None:
            times = self._custom(timesteps)
            chain, told = self._chain(len(times), times)
        else:
            steps = integer("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
            spaced = None if self._respacing or self._flow else self._spaced(steps)
            chain, told = self._chain(steps, spaced, shift)
        self._take(chain, told, device, _mu_shift=moved)

    def _custom(self, timesteps: Any) -> Float64:
        if self._respacing:
            raise ValueError(
                f"timesteps were given, but the config asks for {self._respacing} sigmas: give num_inference_steps, "
                "or change the config."
            )
        values = np.trunc(reals("timesteps", timesteps))
        if values.ndim != 1 or not values.size or not ((values >= 0) & (values <= len(self) - 1)).all():
            raise ValueError(f"timesteps={timesteps!r}: expected whole numbers in [0, {len(self) - 1}].")
        if (np.diff(values) > 0).any():
            raise ValueError(
                f"timesteps={values.tolist()[:5]}: expected descending numbers; sort them, noisiest first."
            )
        return values

    @property
    def _rounds_karras(self) -> bool:
        return self.config["beta_schedule"] != "squaredcos_cap_v2"

    def _final(self, sigmas: Float64, shift: float) -> float:
        if self._flow and self._last_sigma and "dpm-flow-sigma-min" in self._corrections:
            return min(float(shift_flow(1 / len(self), shift)), float(sigmas[-1]))
        return self._last_sigma

    @property
    def _default(self) -> HeldDPMSolver:
        return self._ended(self._first(self._run[0] or 0))

    def _first(self, index: int) -> int:
        """Row at which the run began; a whole history is the same wherever, but is not there in the first rows."""
        whole, held = min(len(self.model_outputs) - 1, 2), self.lower_order_nums
        return 0 if index >= whole <= held else index - held

    def _plan_at(self, index: int) -> Plan:
        """The plan of the step at a row, with the history that there is."""
        begun = self._first(index)
        return self._plan_by((begun,), self._ended, begun)

    def _ended(self, begun: int) -> HeldDPMSolver:
        """The solver with the orders of the last steps."""
        config, count = self.config, len(self._times)
        few = config["lower_order_final"] and count < 15
        first_order = config["euler_at_final"] or config["final_sigmas_type"] == "zero"
        solver = self._solver(last_orders=(2, 1) if few else (1,) if first_order else ())
        return self._held(solver, begun)

    def _solver(self, **options: Any) -> DPMSolver:
        config = self.config
        options = {"order_max": min(config["solver_order"], 3)} | options
        stochastic = config["algorithm_type"].startswith("sde")
        return DPMSolver(
            integrand=self._integrand, stochastic=stochastic, variant=config["solver_type"], **options
        )

    def _held(self, solver: DPMSolver, begun: int) -> HeldDPMSolver:
        as_authors = "dpm-third-order" not in self._corrections
        return HeldDPMSolver(solver, begun, max(1, solver.order_max - 1), as_authors)

    def step(
        self,
        model_output: Array,
        timestep: Any,
        sample: Array,
        generator: Any = None,
        variance_noise: Array | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step to the next level.

        Parameters
        ----------
        model_output
            The model's output, shape of ``sample``; channels beyond the sample's are a learned variance, not used.
        timestep
            One of ``timesteps``; looked up at the first call, then not read.
        sample
            x_t, any array library; never written to.
        generator
            Source of the noise of sde algorithms, drawn in float32 at every step; see `anystep.draw`.
        variance_noise
            That noise itself.
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
            If a dtype or shape differs, noise is missing, or `set_timesteps` was not called. Nothing is changed then.
        """
        index = self._begun(timestep)
        if self._learned:
            model_output = self._first_channels(model_output, sample)
        plan, noise = self._plan_at(index), None
        if plan.noises:
            matching(sample, model_output, "model_output")  # before a generator has moved on
            noise = self._noise(model_output, generator, index) if variance_noise is None else variance_noise
        moved = self._advance(plan, index, sample, model_output, noise)
        latest = self._run[1]
        self._remember(latest[0] if latest else model_output)
        return SchedulerOutput.of((moved,)) if return_dict else (moved,)

    @staticmethod
    def _noise(model_output: Array, generator: Any, index: int) -> Array:
        xp = kind(model_output, "model_output").xp
        return draw(xp.astype(model_output, xp.float32, copy=False), generator, index)

    def _first_channels(self, model_output: Array, sample: Array) -> Array:
        """The prediction without the learned variance beside it."""
        for array, name in ((sample, "sample"), (model_output, "model_output")):
            kind(array, name)
        learned = self._learned and model_output.ndim > 1
        return model_output[:, : sample.shape[1], ...] if learned and sample.ndim > 1 else model_output

    # ------------------------------------------------------------------ parts of a step

    def convert_model_output(
        self, model_output: Array, *args: Any, sample: Array | None = None, **kwargs: Any
    ) -> Array:
        """The estimate that the step at ``step_index`` integrates: x̂₀ for ++, else ε̂.

        Parameters
        ----------
        model_output
            The model's output.
        *args
            Timestep and sample, as older code passes them; the timestep is not heeded.
        sample
            x_t.
        """
        sample = _sample(args, 1, sample)
        model_output = self._first_channels(model_output, sample)
        plan, index = self._plan_at(self._current), self._current
        noise = sample if plan.noises else None
        return update(plan, index, State(sample, self._memory(plan, sample)), model_output, noise).memory[0]

    def dpm_solver_first_order_update(
        self,
        model_output: Array,
        *args: Any,
        sample: Array | None = None,
        noise: Array | None = None,
        **kwargs: Any,
    ) -> Array:
        """The step of one estimate at ``step_index``; ``model_output`` is converted. Changes no state."""
        return self._part([model_output], 1, _sample(args, 2, sample), noise)

    def multistep_dpm_solver_second_order_update(
        self,
        model_output_list: Sequence[Array],
        *args: Any,
        sample: Array | None = None,
        noise: Array | None = None,
        **kwargs: Any,
    ) -> Array:
        """The step of two converted estimates at ``step_index``, the latest last. Changes no state."""
        return self._part(model_output_list, 2, _sample(args, 2, sample), noise)

    def multistep_dpm_solver_third_order_update(
        self,
        model_output_list: Sequence[Array],
        *args: Any,
        sample: Array | None = None,
        noise: Array | None = None,
        **kwargs: Any,
    ) -> Array:
        """The step of three converted estimates at ``step_index``, the latest last. Changes no state."""
        return self._part(model_output_list, 3, _sample(args, 2, sample), noise)

    @property
    def _current(self) -> int:
        if self._run[0] is None:
            raise ValueError(
                "step_index=None: no step has been taken yet; call step, or _init_step_index(timestep)."
            )
        return self._run[0]

    def _part(self, estimates: Sequence[Array], order: int, sample: Array, noise: Array | None) -> Array:
        sampler = self._held(self._solver(order_max=order), self._current - order + 1)
        plan = sampler.plan(self._levels, "sample" if self._integrand == "x0" else "epsilon")
        latest, *earlier = list(estimates)[: -order - 1 : -1]
        memory = (*earlier, *(sample,) * plan.memories)[: plan.memories]
        return update(plan, self._current, State(sample, memory), latest, noise if plan.noises else None).x


def _sample(args: tuple[Any, ...], position: int, sample: Array | None) -> Array:
    """The sample, by keyword or where older code passes it."""
    if sample is None and len(args) <= position:
        raise ValueError("sample=None: expected the current sample; pass it by keyword.")
    return args[position] if sample is None else sample
