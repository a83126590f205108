"""Planted errors, one line each, and the tests that must notice: `python tests/mutants.py [id ...]` runs them.

Every mutant gets its own copy of ``core`` and ``backends``, which its tests import instead of the packages; a test that
passes on it does not test what it says. Prints a Markdown table; exits with 1 if a mutant survives one of its killers, with 2
if something did not run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300

GUARD = """
import json, os, sys
from pathlib import Path

copy = Path(os.environ["ANYSTEP_COPY"])
sys.path[:0] = [str(copy / "core"), str(copy / "backends")]
import anystep, hypothesis

import anystep_backends
assert all(Path(package.__file__).is_relative_to(copy) for package in (anystep, anystep_backends))
# A failure is all that is asked for, not the least example.
hypothesis.settings.register_profile("mutants", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])
hypothesis.settings.load_profile("mutants")
outcomes = {}

def pytest_runtest_logreport(report):
    if report.when == "call" or report.failed:
        outcomes[report.nodeid] = report.outcome if report.when == "call" else "error"

def pytest_sessionfinish():
    strays = [name for name, module in sys.modules.items() if name.split(".")[0] in ("anystep", "anystep_backends")
              and getattr(module, "__file__", None) and not Path(module.__file__).is_relative_to(copy)]
    assert not strays, strays
    Path(os.environ["ANYSTEP_OUTCOMES"]).write_text(json.dumps(outcomes))
"""


@dataclass(frozen=True)
class Mutant:
    """One planted error."""

    id: str
    file: str
    """Below core/anystep, or from backends/ on."""
    original: str
    """Text that occurs exactly once."""
    mutated: str
    killers: tuple[str, ...]
    """Node ids below tests; each must fail. One without brackets fails if any of its parametrizations does."""

    @property
    def path(self) -> Path:
        return ROOT / self.place

    @property
    def place(self) -> Path:
        """Of the file, in the repository or a copy of it."""
        return Path(self.file if self.file.startswith("backends/") else f"core/anystep/{self.file}")

    def apply(self, copy: Path) -> None:
        """Plant the error in a copy."""
        target = copy / self.place
        text = target.read_text()
        if text.count(self.original) != 1:
            raise ValueError(
                f"{self.id}: {self.original!r} occurs {text.count(self.original)} times in {self.file}."
            )
        target.write_text(text.replace(self.original, self.mutated))


MUTANTS = [
    # ------------------------------------------------------------------ what errors and neighbours must leave alone
    Mutant(
        "failed-config-is-kept",
        "schedulers/_config.py",
        "            attributes.update(before)",
        "            attributes.update({**before, '_internal_dict': FrozenDict(config)})",
        ("test_fuzz.py::test_a_config_that_is_replaced_in_a_run",),
    ),
    Mutant(
        "clone-is-the-scheduler-itself",
        "schedulers/_mixin.py",
        "        clone = copy.copy(self)",
        "        clone = self",
        (
            "test_shared.py::test_two_requests_interleaved_on_clones",
            "test_shared.py::test_tasks_that_take_turns",
        ),
    ),
    Mutant(
        "noise-before-the-check",
        "schedulers/ddpm.py",
        'matching(sample, model_output, "model_output")',
        'matching(sample, sample, "model_output")',
        ("test_shared.py::test_used_again_after_errors",),
    ),
    Mutant(
        "unfinished-file-left",
        "_files.py",
        "unfinished.unlink(missing_ok=True)",
        "unfinished.exists()",
        ("test_fuzz.py::test_paths_lead_nowhere_else",),
    ),
    Mutant(
        "subfolder-leads-out",
        "schedulers/_config_files.py",
        'if parts.anchor or ".." in parts.parts or',
        "if parts.anchor or",
        ("test_fuzz.py::test_paths_lead_nowhere_else",),
    ),
    # ------------------------------------------------------------------ counter noise
    Mutant(
        "threefry-rotation",
        "_threefry.py",
        "ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)",
        "ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 25)",
        ("test_noise.py::test_known_answers", "test_noise.py::test_jax_has_the_same_threefry"),
    ),
    Mutant(
        "threefry-parity",
        "_threefry.py",
        "PARITY = 0x1BD11BDA",
        "PARITY = 0x1BD11BDB",
        ("test_noise.py::test_known_answers", "test_noise.py::test_bits_of_jax_are_the_two_words_xored"),
    ),
    Mutant(
        "threefry-schedule-forgets-the-turn",
        "_threefry.py",
        "b = b + (schedule[(turn + 1) % 3] + turn)",
        "b = b + schedule[(turn + 1) % 3]",
        ("test_noise.py::test_known_answers_of_arrays", "test_noise.py::test_arrays_and_ints_agree"),
    ),
    Mutant(
        "noise-segment-next-door",
        "_quantiles.py",
        "at = (octave * 2**SEGMENT_BITS) + segment",
        "at = (octave * 2**SEGMENT_BITS) + (segment ^ 1)",
        ("test_noise.py::test_accuracy", "test_noise.py::test_layout"),
    ),
    Mutant(
        "noise-sign",
        "_quantiles.py",
        "return xp.where(word < 0, -z, z)",
        "return xp.where(word < 0, z, -z)",
        (
            "test_noise.py::test_accuracy",
            "test_noise.py::test_layout",
            "test_noise.py::test_the_numbers_of_this_version",
        ),
    ),
    Mutant(
        "noise-long-product",
        "_quantiles.py",
        "tail * upper + head * lower",
        "tail * upper - head * lower",
        ("test_noise.py::test_wide_accuracy",),
    ),
    Mutant(
        "noise-pair-order",
        "_counter.py",
        "xp.stack(pair, axis=-1)",
        "xp.stack(pair[::-1], axis=-1)",
        ("test_noise.py::test_layout", "test_noise.py::test_the_numbers_of_this_version"),
    ),
    Mutant(
        "noise-blocks-begin-alike",
        "_counter.py",
        "xp.arange(first // 2, (first + elements + 1) // 2,",
        "xp.arange(0, (elements + 1) // 2,",
        (
            "test_noise.py::test_large_arrays_agree",
            "test_noise.py::test_values_repeat_as_often_as_their_grid_says",
        ),
    ),
    Mutant(
        "noise-laws-share-a-key",
        "_counter.py",
        "stream | LAWS.index(law) << LAW_BIT",
        "stream",
        ("test_noise.py::test_layout", "test_noise.py::test_neighbours_are_uncorrelated"),
    ),
    Mutant(
        "noise-of-every-step-alike",
        "_draw.py",
        "return generator.normal(x, index)",
        "return generator.normal(x)",
        ("test_noise.py::test_sample_counts_rows_from_0", "test_noise.py::test_draws"),
    ),
    # ------------------------------------------------------------------ PNDM and RePaint
    Mutant(
        "pndm-slope-sign",
        "samplers/pndm.py",
        "slope = end.sigma_t - carry * start.sigma_t",
        "slope = end.sigma_t + carry * start.sigma_t",
        ("test_pndm.py::test_rows_of_any_alpha_and_sigma",),
    ),
    Mutant(
        "pndm-multistep-weight",
        "samplers/pndm.py",
        "(55 / 24, -59 / 24, 37 / 24, -9 / 24, 0)",
        "(55 / 24, -59 / 24, 38 / 24, -10 / 24, 0)",
        ("test_pndm.py::test_weights_are_those_of_the_classical_methods",),
    ),
    Mutant(
        "pndm-third-call-ends-half-way",
        "samplers/pndm.py",
        '"prk3": Stage(MIDDLE, NXT,',
        '"prk3": Stage(MIDDLE, MIDDLE,',
        ("test_pndm.py::test_equations_of_the_paper",),
    ),
    Mutant(
        "repaint-known-above",
        "repaint.py",
        "return mix(original, noise, _at(plan.alpha[1:], i, original), _at(plan.sigma[1:], i, original))",
        "return mix(original, noise, _at(plan.alpha[:-1], i, original), _at(plan.sigma[:-1], i, original))",
        ("test_repaint.py::test_known_and_undo_are_the_forward_process",),
    ),
    Mutant(
        "repaint-undo-forgets-kept",
        "repaint.py",
        "plan.sigma[:-1] ** 2 - (kept * plan.sigma[1:]) ** 2",
        "plan.sigma[:-1] ** 2 - plan.sigma[1:] ** 2",
        ("test_repaint.py::test_known_and_undo_are_the_forward_process",),
    ),
    Mutant(
        "repaint-mask-inverted",
        "repaint.py",
        "m * one + (1.0 - m) * other",
        "m * other + (1.0 - m) * one",
        ("test_repaint.py::test_masks_broadcast_and_may_be_boolean_or_soft",),
    ),
    Mutant(
        "inpainting-known-above",
        "_inpainting.py",
        "bare_plan(self.plan.alpha[1:], self.plan.sigma[1:])",
        "bare_plan(self.plan.alpha[:-1], self.plan.sigma[:-1])",
        ("test_repaint.py::test_the_fused_step_is_the_plain_one",),
    ),
    Mutant(
        "inpainting-bound-block-by-block",
        "_inpainting.py",
        "whole = size < LARGE or not isinstance(parts.plan.threshold, Clip | None)",
        "whole = size < LARGE",
        ("test_repaint.py::test_the_fused_step_is_the_plain_one",),
    ),
    Mutant(
        "inpainting-program-mask-inverted",
        "_inpainting.py",
        "kept * known + (1.0 - kept) * unknown",
        "kept * unknown + (1.0 - kept) * known",
        ("test_repaint.py::test_the_fused_step_is_the_plain_one[jax-float32-None-small]",),
    ),
    # ------------------------------------------------------------------ predictions
    Mutant(
        "epsilon-forgets-alpha",
        "predictions.py",
        "return 1 / alpha_t, -level.sigma_t / alpha_t",
        "return 1 / alpha_t, -level.sigma_t",
        (
            "test_predictions.py::test_a_perfect_model_gives_back_what_it_knows[epsilon]",
            "test_predictions.py::test_the_two_estimates_make_up_the_sample[epsilon]",
        ),
    ),
    Mutant(
        "velocity-sign",
        "predictions.py",
        "return level.alpha_t / norm, -level.sigma_t / norm",
        "return level.alpha_t / norm, level.sigma_t / norm",
        ("test_predictions.py::test_a_perfect_model_gives_back_what_it_knows[v_prediction]",),
    ),
    Mutant(
        "flow-swaps-ends",
        "predictions.py",
        "return 1 / norm, -level.sigma_t / norm",
        "return 1 / norm, -level.alpha_t / norm",
        ("test_predictions.py::test_a_perfect_model_gives_back_what_it_knows[flow_prediction]",),
    ),
    Mutant(
        "score-not-squared",
        "predictions.py",
        "return 1 / alpha_t, level.sigma_t**2 / alpha_t",
        "return 1 / alpha_t, level.sigma_t / alpha_t",
        ("test_predictions.py::test_the_two_estimates_make_up_the_sample[score]",),
    ),
    Mutant(
        "edm-skip-forgets-alpha",
        "predictions.py",
        "return self.sigma_data**2 / variance / level.alpha_t,",
        "return self.sigma_data**2 / variance,",
        ("test_predictions.py::test_edm_is_table_1",),
    ),
    Mutant(
        "edm-noise-halved",
        "predictions.py",
        "np.log(level.karras_sigma) / 4",
        "np.log(level.karras_sigma) / 2",
        ("test_predictions.py::test_edm_is_table_1",),
    ),
    Mutant(
        "target-sign",
        "predictions.py",
        "-a * level.sigma_t / b",
        "a * level.sigma_t / b",
        (
            "test_predictions.py::test_training_target[v_prediction]",
            "test_forward.py::test_targets[numpy-float64]",
        ),
    ),
    # ------------------------------------------------------------------ levels and plans
    Mutant(
        "karras-coordinates-keep-scale",
        "levels.py",
        "scale=self.scale * self.cur.alpha_t",
        "scale=self.scale",
        ("test_levels.py::test_karras_coordinates_leave_the_model_where_it_is",),
    ),
    Mutant(
        "noise-estimate-forgets-scale",
        "plan.py",
        "(c * levels.scale)[:, None]",
        "c[:, None]",
        ("test_samplers.py::test_karras_coordinates_give_the_same_sample_up_to_scale",),
    ),
    Mutant(
        "fold-forgets-x",
        "plan.py",
        "table[:, :, :2] += table[:, :, X0, None] * self.estimate[:, None, :]",
        "table[:, :, 1:2] += table[:, :, X0, None] * self.estimate[:, None, 1:]",
        (
            "test_samplers.py::test_ddim_in_its_own_letters",
            "test_convergence.py::test_closed_form[DDIM-even-vp]",
        ),
    ),
    # ------------------------------------------------------------------ schedules
    Mutant(
        "zero-snr-not-rescaled",
        "schedules/betas.py",
        "root = (root - root[-1]) * root[0] / (root[0] - root[-1])",
        "root = root - root[-1]",
        ("test_schedules.py::test_zero_terminal_snr[1000-linear]",),
    ),
    Mutant(
        "scaled-linear-is-linear",
        "schedules/betas.py",
        "np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2",
        "np.linspace(beta_start, beta_end, steps)",
        ("test_schedules.py::test_betas[1000-scaled_linear]",),
    ),
    Mutant(
        "cosine-offset",
        "schedules/betas.py",
        "(t + 0.008) / 1.008",
        "(t + 0.008) / 1.08",
        ("test_schedules.py::test_betas[10-squaredcos_cap_v2]",),
    ),
    Mutant(
        "signal-for-its-square",
        "schedules/betas.py",
        "np.cumprod(1 - betas)",
        "np.cumprod((1 - betas) ** 0.5)",
        (
            "test_schedules.py::test_betas[10-linear]",
            "test_schedules.py::test_betas_and_their_product_agree[linear]",
        ),
    ),
    Mutant(
        "interpolates-sigma-for-its-log",
        "schedules/betas.py",
        "np.exp(np.interp(times, grid, self._log_sigmas))",
        "np.interp(times, grid, self.karras_sigmas)",
        (
            "test_schedules.py::test_between_timesteps",
            "test_schedules.py::test_level_and_timestep_are_inverse[linear]",
        ),
    ),
    Mutant(
        "vp-integral-of-the-slope",
        "schedules/continuous.py",
        "-0.25 * u * u * (self.beta_max - self.beta_min)",
        "-0.5 * u * u * (self.beta_max - self.beta_min)",
        (
            "test_schedules.py::test_vp_is_the_integral_of_its_rate",
            "test_schedules.py::test_vp_is_the_limit_of_linear_betas",
        ),
    ),
    Mutant(
        "vp-inverse-halved",
        "schedules/continuous.py",
        "u = np.divide(2 * total, below,",
        "u = np.divide(total, below,",
        ("test_schedules.py::test_level_and_timestep_are_inverse[vp]",),
    ),
    Mutant(
        "flow-from-noise-to-data",
        "schedules/continuous.py",
        "return Level(t, 1 - t / self.time_scale, t / self.time_scale)",
        "return Level(t, t / self.time_scale, 1 - t / self.time_scale)",
        ("test_schedules.py::test_closed_forms", "test_forward.py::test_ends"),
    ),
    Mutant(
        "ratio-of-the-wrong-process",
        "schedules/_base.py",
        "1 / np.sqrt(1 + ratio**2), 1 / np.sqrt(1 + ratio**-2.0)",
        "1 / (1 + ratio), 1 / (1 + 1 / ratio)",
        (
            "test_schedules.py::test_level_and_timestep_are_inverse[vp]",
            "test_schedules.py::test_between_timesteps",
        ),
    ),
    # ------------------------------------------------------------------ spacings
    Mutant(
        "trailing-off-by-one",
        "spacings/_timesteps.py",
        "-stride)[:steps]) - 1",
        "-stride)[:steps])",
        ("test_spacings.py::test_trailing", "test_spacings.py::test_published_timesteps"),
    ),
    Mutant(
        "trailing-one-too-many",
        "spacings/_timesteps.py",
        "-stride)[:steps]) - 1",
        "-stride)) - 1",
        ("test_spacings.py::test_trailing_beside_diffusers",),
    ),
    Mutant(
        "leading-drops-offset",
        "spacings/_timesteps.py",
        "np.arange(steps)[::-1] * stride + offset",
        "np.arange(steps)[::-1] * stride",
        ("test_spacings.py::test_leading",),
    ),
    Mutant(
        "karras-rho-inverted",
        "spacings/sigma.py",
        "sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps)",
        "sigma_max**rho, sigma_min**rho, steps) ** (1 / rho**2)",
        ("test_spacings.py::test_karras", "test_spacings.py::test_karras_of_the_paper"),
    ),
    Mutant(
        "beta-parameters-swapped",
        "spacings/sigma.py",
        "betaincinv(a, b,",
        "betaincinv(b, a,",
        ("test_spacings.py::test_beta",),
    ),
    Mutant(
        "shift-adds",
        "spacings/flow.py",
        "return shift * sigma / (1 + (shift - 1) * sigma)",
        "return shift * sigma / (1 + shift * sigma)",
        ("test_spacings.py::test_shift", "test_spacings.py::test_shifted_flow"),
    ),
    Mutant(
        "stretch-to-the-complement",
        "spacings/flow.py",
        "return 1 - rest / (rest[-1] / (1 - terminal))",
        "return 1 - rest / (rest[-1] / terminal)",
        ("test_spacings.py::test_stretch",),
    ),
    # ------------------------------------------------------------------ rectified flow
    Mutant(
        "shift-power-of-the-signal-forgotten",
        "spacings/flow.py",
        "return noise / (noise + (1 - sigma) ** power)",
        "return noise / (noise + (1 - sigma))",
        ("test_flow_match.py::test_shift_multiplies_the_ratio",),
    ),
    Mutant(
        "consistency-at-the-wrong-end",
        "samplers/multistep_consistency.py",
        "np.asarray(levels.nxt.alpha_t), np.asarray(levels.nxt.sigma_t))",
        "np.asarray(levels.cur.alpha_t), np.asarray(levels.nxt.sigma_t))",
        (
            "test_flow_match.py::test_a_consistency_model_is_sampled_exactly",
            "test_flow_match.py::test_consistency_moments",
        ),
    ),
    Mutant(
        "flow-toward-data-noise-sign",
        "predictions.py",
        "return 1 / norm, level.alpha_t / norm * self._sign",
        "return 1 / norm, level.alpha_t / norm",
        (
            "test_flow_match.py::test_flow_toward_the_data_is_the_negative",
            "test_parity_flow_match_euler.py::test_loop[{'invert_sigmas': True}-5]",
        ),
    ),
    Mutant(
        "flow-grid-shifted-once",
        "schedulers/_flow.py",
        "low, high = (1.0 / len(self), 1.0) if once else (self.sigma_min, self.sigma_max)",
        "low, high = (1.0 / len(self), 1.0)",
        ("test_parity_flow_match_euler.py::test_loop[shift=3.0-5]",),
    ),
    Mutant(
        "stretch-of-squares",
        "spacings/flow.py",
        "rest = 1 - sigmas",
        "rest = 1 - sigmas**2",
        ("test_flow_match.py::test_terminal",),
    ),
    Mutant(
        "flow-noising-at-the-begin-index-only",
        "schedulers/_flow.py",
        "float(sigmas[self._standing])",
        "float(sigmas[self._begin_index])",
        ("test_parity_flow_match_euler.py::test_scale_noise",),
    ),
    Mutant(
        "tokens-without-slack",
        "_per_token.py",
        "below = rows < now[None, ...] - _APART",
        "below = rows <= now[None, ...]",
        (
            "test_parity_flow_match_euler.py::test_per_token",
            "test_parity_flow_match_euler.py::test_tokens_of_one_level_step_as_the_sample_does",
        ),
    ),
    Mutant(
        "tokens-noise-the-level-left",
        "_per_token.py",
        "(wide - v * now) * (1.0 - then) + noise * then",
        "(wide - v * now) * (1.0 - then) + noise * now",
        ("test_parity_flow_match_euler.py::test_corrected_tokens_run_as_if_each_were_alone",),
    ),
    # ------------------------------------------------------------------ samplers
    Mutant(
        "eta-on-the-variance",
        "samplers/ddim.py",
        "std = self.eta * posterior_std(levels)",
        "std = self.eta**0.5 * posterior_std(levels)",
        (
            "test_samplers.py::test_eta_scales_the_standard_deviation",
            "test_samplers.py::test_ddim_in_its_own_letters",
        ),
    ),
    Mutant(
        "direction-keeps-the-variance",
        "samplers/ddim.py",
        "np.maximum(nxt.sigma_t**2 - std**2, 0.0)",
        "np.maximum(nxt.sigma_t**2, 0.0)",
        (
            "test_samplers.py::test_signal_and_variance[DDIM, eta=1]",
            "test_moments.py::test_the_moments_converge_to_those_of_the_data[DDIM, eta=0.5]",
        ),
    ),
    Mutant(
        "reestimate-forgets-the-signal",
        "samplers/ddim.py",
        "nxt.alpha_t - ratio * cur.alpha_t",
        "nxt.alpha_t - ratio",
        ("test_samplers.py::test_reestimated_noise_is_the_noise[v_prediction]",),
    ),
    Mutant(
        "posterior-at-the-wrong-end",
        "samplers/_base.py",
        "return added_std(levels) * levels.nxt.sigma_t / levels.cur.sigma_t",
        "return added_std(levels) * levels.cur.sigma_t / levels.cur.sigma_t",
        (
            "test_samplers.py::test_standard_deviations",
            "test_samplers.py::test_ddpm_is_the_gaussian_posterior",
            "test_variance.py::test_range_in_the_letters_of_ddpm",
        ),
    ),
    Mutant(
        "added-noise-forgets-alpha",
        "samplers/_base.py",
        "(kept * levels.nxt.sigma_t) ** 2",
        "levels.nxt.sigma_t ** 2",
        (
            "test_samplers.py::test_standard_deviations",
            "test_moments.py::test_one_point_as_data",
        ),
    ),
    Mutant(
        "ddpm-mean-not-squared",
        "samplers/ddpm.py",
        "x = kept * (nxt.sigma_t / cur.sigma_t) ** 2",
        "x = kept * (nxt.sigma_t / cur.sigma_t)",
        (
            "test_samplers.py::test_signal_and_variance[DDPM]",
            "test_convergence.py::test_the_mean_of_ddpm_is_exact_for_a_gaussian",
        ),
    ),
    Mutant(
        "ddpm-large-is-small",
        "samplers/ddpm.py",
        "np.where(ends, 0.0, added)",
        "np.where(ends, 0.0, posterior_std(levels))",
        (
            "test_samplers.py::test_ddpm_is_the_gaussian_posterior",
            "test_moments.py::test_standard_normal_as_data",
        ),
    ),
    Mutant(
        "euler-forgets-alpha",
        "samplers/euler.py",
        "x0 = nxt.alpha_t - cur.alpha_t * x",
        "x0 = 1 - x",
        (
            "test_samplers.py::test_eta_0_is_euler[epsilon]",
            "test_convergence.py::test_closed_form[Euler-even-vp]",
        ),
    ),
    Mutant(
        "euler-halfway",
        "samplers/euler.py",
        "x = nxt.sigma_t / cur.sigma_t",
        "x = (nxt.sigma_t / cur.sigma_t) ** 0.5",
        ("test_convergence.py::test_closed_form[Euler-karras-ve]",),
    ),
    Mutant(
        "churn-adds-deviations",
        "samplers/euler.py",
        "cur.sigma_t[1:] ** 2 - nxt.sigma_t[:-1] ** 2",
        "(cur.sigma_t[1:] - nxt.sigma_t[:-1]) ** 2",
        ("test_samplers.py::test_churn_is_algorithm_2", "test_moments.py::test_churn_arrives_at_the_data"),
    ),
    Mutant(
        "churn-all-at-once",
        "samplers/euler.py",
        "min(self.s_churn / levels.steps, 2**0.5 - 1)",
        "min(self.s_churn, 2**0.5 - 1)",
        ("test_samplers.py::test_churn_raises_levels_by_its_factor_inside_its_window",),
    ),
    Mutant(
        "ancestral-noise-is-the-variance",
        "samplers/euler_ancestral.py",
        "self.eta * posterior_std(levels)",
        "self.eta * posterior_std(levels) ** 2",
        ("test_euler_ancestral.py::test_in_its_own_letters", "test_euler_ancestral.py::test_whole_loop"),
    ),
    Mutant(
        "ancestral-keeps-eta-linear",
        "samplers/euler_ancestral.py",
        "(1 - self.eta) * (1 + self.eta)",
        "(1 - self.eta)",
        (
            "test_samplers.py::test_signal_and_variance[Euler ancestral, eta=0.4]",
            "test_euler_ancestral.py::test_whole_loop",
        ),
    ),
    Mutant(
        "lms-integrates-without-dividing",
        "samplers/lms.py",
        "(powers / np.arange(1, count + 1))",
        "(powers / count)",
        (
            "test_lms_ipndm.py::test_weights_of_even_steps",
            "test_lms_ipndm.py::test_lms_is_exact_for_polynomials",
        ),
    ),
    Mutant(
        "lms-nodes-from-the-step-before",
        "samplers/lms.py",
        "first = pure + count - 1",
        "first = pure + count",
        ("test_lms_ipndm.py::test_lms_rows", "test_lms_ipndm.py::test_one_call_a_step_is_ddim"),
    ),
    Mutant(
        "lms-forgets-pure-noise",
        "samplers/lms.py",
        "pure = int(np.isinf(cur[0]))",
        "pure = 0",
        ("test_lms_ipndm.py::test_pure_noise_has_no_slope",),
    ),
    Mutant(
        "lms-history-drops-too-early",
        "schedulers/lms_discrete.py",
        "held = earlier + (earlier < order)",
        "held = min(earlier + 1, order)",
        ("test_parity_lms.py::test_an_order_that_changes_on_the_way",),
    ),
    Mutant(
        "heun-pairs-the-other-way",
        "schedulers/heun_discrete.py",
        "late = corrects != bool(index % 2)",
        "late = corrects == bool(index % 2)",
        ("test_parity_heun.py::test_is_the_published_algorithm",),
    ),
    Mutant(
        "heun-never-corrects",
        "schedulers/heun_discrete.py",
        "corrects = not self.state_in_first_order",
        "corrects = False",
        (
            "test_parity_heun.py::test_order_2",
            "test_parity_heun.py::test_begun_at_any_row",
        ),
    ),
    Mutant(
        "heun-levels-a-row-late",
        "schedulers/heun_discrete.py",
        "chain.repeat(2)[1:-1]",
        "chain.repeat(2)[:-2]",
        ("test_parity_heun.py::test_grid",),
    ),
    Mutant(
        "heun-forgets-foreign-karras-ends",
        "schedulers/heun_discrete.py",
        '_foreign_ends = ("karras", "exponential", "beta")',
        '_foreign_ends = ("exponential", "beta")',
        ("test_parity_heun.py::test_ends_that_another_class_left_in_the_config",),
    ),
    Mutant(
        "heun-corrected-keeps-half-a-step",
        "schedulers/heun_discrete.py",
        'not (late and "heun-begin" in self._corrections)',
        'not (late and "heun-begins" in self._corrections)',
        ("test_parity_heun.py::test_corrected_runs_begin_a_step",),
    ),
    Mutant(
        "facade-bound-left-out",
        "schedulers/_indexed.py",
        "self._levels, self._prediction, self._threshold)",
        "self._levels, self._prediction)",
        (
            "test_parity_heun.py::test_plan_is_that_of_the_own_face",
            "test_parity_heun.py::test_begun_at_any_row",
        ),
    ),
    Mutant(
        "late-heun-does-not-return",
        "samplers/_late_heun.py",
        "START if self.corrects else X",
        "X",
        ("test_parity_heun.py::test_begun_at_any_row",),
    ),
    Mutant(
        "phi-cancels",
        "samplers/_phi.py",
        "size < 1.5 * (k - 1)",
        "size < 0.01 * (k - 1)",
        ("test_dpm_solver.py::test_phi_to_a_few_ulp",),
    ),
    Mutant(
        "dpm-half-of-the-third-order",
        "samplers/dpm_solver.py",
        "size * h**3 * phi_3",
        "size * h**3 * phi_3 / 2",
        (
            "test_dpm_solver.py::test_coefficients_are_the_papers_integrals",
            "test_dpm_solver.py::test_order_of_convergence",
            "test_parity_dpmsolver_multistep.py::test_loop",
        ),
    ),
    Mutant(
        "dpm-whole-step-for-the-midpoint",
        "samplers/dpm_solver.py",
        "phi(1, z)[0] / 2 if midpoint",
        "phi(1, z)[0] if midpoint",
        (
            "test_dpm_solver.py::test_coefficients_are_the_papers_integrals",
            "test_dpm_solver.py::test_order_of_convergence",
        ),
    ),
    Mutant(
        "dpm-noise-of-half-the-step",
        "samplers/dpm_solver.py",
        "np.maximum(-np.expm1(-2 * h), 0.0)",
        "np.maximum(-np.expm1(-h), 0.0)",
        (
            "test_dpm_solver.py::test_true_estimates_land_on_the_next_level",
            "test_dpm_solver.py::test_variance_of_the_sde",
        ),
    ),
    Mutant(
        "dpm-divides-by-equal-levels",
        "samplers/dpm_solver.py",
        "(orders[j:] > j) & (width != 0)",
        "(orders[j:] > j)",
        ("test_dpm_solver.py::test_a_step_between_equal_levels_changes_nothing",),
    ),
    Mutant(
        "dpm-nodes-of-one-distance",
        "samplers/dpm_solver.py",
        "_width(levels.cur[: levels.steps - j], levels.cur[j:])",
        "j * _width(levels.cur[: levels.steps - 1], levels.cur[1:])[j - 1 :]",
        (
            "test_dpm_solver.py::test_coefficients_are_the_papers_integrals",
            "test_dpm_solver.py::test_order_of_convergence",
        ),
    ),
    Mutant(
        "dpm-few-steps-are-sixteen",
        "schedulers/dpmsolver_multistep.py",
        "count < 15",
        "count < 16",
        ("test_parity_dpmsolver_multistep.py::test_loop",),
    ),
    Mutant(
        "dpm-late-run-has-a-history",
        "schedulers/dpmsolver_multistep.py",
        "return 0 if index >= whole <= held else index - held",
        "return 0",
        (
            "test_parity_dpmsolver_multistep.py::test_loop",
            "test_parity_dpmsolver_multistep.py::test_loop_in_float64",
        ),
    ),
    Mutant(
        "lambda-begins-at-the-second",
        "schedulers/_lambda.py",
        "len(rows) > 1 and rows[0] else",
        "len(rows) > 1 else",
        (
            "test_parity_dpmsolver_multistep.py::test_every_number_of_steps_runs",
            "test_parity_dpmsolver_multistep.py::test_the_second_of_two_equal_timesteps_unless_it_is_the_first_of_all",
        ),
    ),
    Mutant(
        "lambda-reads-velocity-right",
        "schedulers/_lambda.py",
        '"v_prediction": self._flow,',
        '"v_prediction": False,',
        ("test_parity_dpmsolver_multistep.py::test_loop",),
    ),
    Mutant(
        "unipc-third-for-a-half",
        "samplers/unipc.py",
        "self._b / 2, second)",
        "self._b / 3, second)",
        ("test_unipc.py::test_rows_are_the_papers", "test_unipc.py::test_unip_2_bh2_is_dpm_solver_2m"),
    ),
    Mutant(
        "unipc-steps-from-the-predicted-sample",
        "samplers/unipc.py",
        "steps.carry[:, None] * start",
        "steps.carry[:, None] * (np.arange(4 + count) == X)",
        ("test_unipc.py::test_the_loop_of_the_paper", "test_unipc.py::test_order_with_the_corrector"),
    ),
    Mutant(
        "unipc-skips-the-wrong-correction",
        "samplers/unipc.py",
        "[step + 1 for step in",
        "[step for step in",
        (
            "test_unipc.py::test_skipped_steps_keep_the_predicted_sample",
            "test_parity_unipc_multistep.py::test_loop",
        ),
    ),
    Mutant(
        "unipc-nodes-of-the-step-after",
        "samplers/unipc.py",
        "back[k:] += self._h[:-k]",
        "back[k:] += self._h[1 : len(back) + 1 - k]",
        ("test_unipc.py::test_rows_are_the_papers", "test_unipc.py::test_order_of_the_predictor"),
    ),
    Mutant(
        "unipc-grows-where-it-decays",
        "samplers/unipc.py",
        "phi(count, -h)",
        "phi(count, h)",
        (
            "test_unipc.py::test_rows_are_the_papers",
            "test_unipc.py::test_constant_estimates_land_on_the_next_level",
        ),
    ),
    Mutant(
        "unipc-counts-two-estimates-of-one-level",
        "samplers/unipc.py",
        "np.isfinite(inverse) & (found[: k - 1] != inverse).all(axis=0)",
        "np.isfinite(inverse)",
        ("test_unipc.py::test_a_step_between_equal_levels_changes_nothing",),
    ),
    Mutant(
        "unipc-counts-an-estimate-of-the-same-level",
        "samplers/unipc.py",
        "& np.isfinite(inverse) &",
        "&",
        ("test_unipc.py::test_one_estimate_a_step_is_ddim",),
    ),
    Mutant(
        "unipc-late-run-has-a-history",
        "schedulers/unipc_multistep.py",
        "max(0, index - held)",
        "max(0, held - held)",
        ("test_parity_unipc_multistep.py::test_loop", "test_parity_unipc_multistep.py::test_loop_in_float64"),
    ),
    Mutant(
        "ipndm-weight",
        "samplers/ipndm.py",
        "(55 / 24, -59 / 24, 37 / 24, -9 / 24)",
        "(54 / 24, -58 / 24, 37 / 24, -9 / 24)",
        ("test_lms_ipndm.py::test_ipndm_rows", "test_lms_ipndm.py::test_whole_run_of_ipndm_by_its_formulas"),
    ),
    Mutant(
        "ipndm-transfer-without-the-signal",
        "samplers/ipndm.py",
        "levels.nxt.alpha_t[later] * levels.cur.karras_sigma[later]",
        "levels.cur.karras_sigma[later]",
        ("test_lms_ipndm.py::test_ipndm_rows", "test_lms_ipndm.py::test_ipndm_has_order_2_on_smooth_grids"),
    ),
    Mutant(
        "vq-replacement-is-not-shared-out",
        "schedules/vq.py",
        "np.where(np.abs(b) <= noise, 0.0, b) / (self.classes - 1)",
        "np.where(np.abs(b) <= noise, 0.0, b) / self.classes",
        ("test_tokens.py::test_rows_sum_to_one", "test_parity_vq_diffusion.py::test_tables"),
    ),
    Mutant(
        "vq-posterior-forgets-the-last-transition",
        "tokens.py",
        "step.nxt) + last + total",
        "step.nxt) + total",
        ("test_tokens.py::test_q_posterior_is_equation_11", "test_parity_vq_diffusion.py::test_q_posterior"),
    ),
    Mutant(
        "vq-race-of-the-mask-at-the-wrong-pace",
        "_token_draws.py",
        "c_nxt / (c * a_nxt) if c",
        "c_nxt / c if c",
        ("test_tokens.py::test_the_race_is_won_by_gumbel_max", "test_parity_vq_diffusion.py::test_loop"),
    ),
    Mutant(
        "vq-mixture-ignores-what-the-model-says-of-the-token",
        "_token_draws.py",
        "even * a_cur / (a_cur + b_cur)",
        "0.0 * a_cur / (a_cur + b_cur)",
        ("test_tokens.py::test_the_mixture_is_the_posterior",),
    ),
    Mutant(
        "vq-respacing-goes-to-the-timestep-before",
        "schedulers/vq_diffusion.py",
        "nxt = int(max(self._times[self._times < t], default=-1))",
        "nxt = t - 1",
        ("test_tokens.py::test_the_chain_ends_at_the_data", "test_parity_vq_diffusion.py::test_vq_respacing"),
    ),
    Mutant(
        "late-churn-forgets-the-estimate",
        "samplers/_late_churn.py",
        "(keep + (1 - keep) * slope)",
        "keep",
        ("test_samplers.py::test_late_churn",),
    ),
    # ------------------------------------------------------------------ on arrays
    Mutant(
        "increment-base-added-twice",
        "_combination.py",
        "self._terms -= self._bases",
        "self._terms -= 0.5 * self._bases",
        (
            "test_samplers.py::test_churn_is_algorithm_2",
            "test_samplers.py::test_a_perfect_model_keeps_the_sample_on_its_line",
        ),
    ),
    Mutant(
        "increment-base-not-scaled",
        "_combination.py",
        "self._terms = table / self._scales[:, None]",
        "self._terms = table / 1.0",
        ("test_samplers.py::test_a_perfect_model_keeps_the_sample_on_its_line",),
    ),
    Mutant(
        "opposed-the-wrong-way",
        "_combination.py",
        "self._bases[opposed, 1] = -1.0",
        "self._bases[opposed, 1] = 1.0",
        ("test_predictions.py::test_clipped_noise_prediction_at_pure_noise",),
    ),
    Mutant(
        "fused-ratio-of-the-largest",
        "backends/anystep_backends/_torch_fused.py",
        "others = [(k, value / c) for k, value in rest if k != pivot]",
        "others = [(k, value) for k, value in rest if k != pivot]",
        ("test_fused.py::test_close_to_the_plain_path",),
    ),
    Mutant(
        "fused-into-the-sample-first",
        "backends/anystep_backends/_torch_fused.py",
        'writer(f"u = add({v}, v{first}, alpha={number(ratio)})")',
        'writer(f"u = add({v}.bfloat16().float(), v{first}, alpha={number(ratio)})")',
        ("test_fused.py::test_a_float32_trajectory_is_as_exact_as_float64_sums",),
    ),
    Mutant(
        "fused-writes-to-a-kept-sample",
        "backends/anystep_backends/_fused.py",
        "keeps = any(one == 0 for one in others)",
        "keeps = False",
        ("test_fused.py::test_donated_memory",),
    ),
    Mutant(
        "fused-numpy-block-out-of-place",
        "backends/anystep_backends/_numpy_fused.py",
        "here = slice(begin, begin + BLOCK)",
        "here = slice(begin, begin + BLOCK - 1)",
        ("test_fused.py::test_large_arrays_are_summed_alike",),
    ),
    Mutant(
        "fused-jax-forgets-the-late",
        "backends/anystep_backends/_jax_fused.py",
        "total = total + wide[k] * next(numbers)",
        "total = total + wide[k] * 0 * next(numbers)",
        ("test_fused.py::test_close_to_the_plain_path",),
    ),
    Mutant(
        "half-precision-not-widened",
        "backends/anystep_backends/_torch_fused.py",
        'writer(*(f"v{k} = v{k}.float()" for k in sorted(reads)))',
        'writer(*(f"v{k} = v{k}" for k in sorted(reads)))',
        ("test_fused.py::test_half_precision_is_rounded_once",),
    ),
    Mutant(
        "fused-torch-over-a-kept-sample",
        "backends/anystep_backends/_torch_fused.py",
        "over = 0 not in moves.values()",
        "over = True",
        ("test_fused.py::test_donated_memory",),
    ),
    Mutant(
        "concatenated-noise-in-a-memory",
        "plan.py",
        "table[:, : 1 + plan.memories, fresh : fresh + plan.noises] = plan.update[:, :, known:]",
        "table[:, : 1 + plan.memories, known : known + plan.noises] = plan.update[:, :, known:]",
        ("test_mixed_batch.py::test_any_plans",),
    ),
    Mutant(
        "noise-is-never-late",
        "_combination.py",
        "small = np.abs(self._terms[:, noises]) < np.abs(self._terms[:, 1:2]) / 256",
        "small = np.abs(self._terms[:, noises]) < 0",
        ("test_fused.py::test_small_noise_keeps_its_digits",),
    ),
    Mutant(
        "remembered-whatever-the-type",
        "schedulers/_remembered.py",
        "*map(type, given),",
        "",
        ("test_remembered.py::test_equal_arguments_of_other_types",),
    ),
    Mutant(
        "remembered-whatever-the-corrections",
        "schedulers/_remembered.py",
        "scheduler._corrections,  # pyright: ignore[reportPrivateUsage]",
        "",
        ("test_remembered.py::test_what_an_answer_depends_on",),
    ),
    Mutant(
        "remembered-list-is-shared",
        "schedulers/_remembered.py",
        "return value.copy() if value.__class__ is list else value",
        "return value",
        ("test_remembered.py::test_nothing_that_can_change_is_shared",),
    ),
    Mutant(
        "threshold-left-out",
        "_update.py",
        "return x0 if plan.threshold is None else plan.threshold(x0)",
        "return x0",
        ("test_predictions.py::test_clipped_noise_prediction_at_pure_noise",),
    ),
    Mutant(
        "forward-velocity-sign",
        "forward.py",
        "mix(original, noise, -sigma_t, alpha_t)",
        "mix(original, noise, sigma_t, alpha_t)",
        ("test_forward.py::test_velocity_is_the_derivative_along_the_circle",),
    ),
    Mutant(
        "halves-stay-narrow",
        "forward.py",
        "found.xp.astype(part, found.work, copy=False) for part in (original, noise)",
        "part for part in (original, noise)",
        ("test_forward.py::test_halves_are_combined_wide",),
    ),
    Mutant(
        "snr-not-squared",
        "forward.py",
        "(np.asarray(level.alpha_t) / level.sigma_t) ** 2",
        "(np.asarray(level.alpha_t) / level.sigma_t)",
        ("test_forward.py::test_signal_to_noise_ratio",),
    ),
    Mutant(
        "table-looked-up-late",
        "forward.py",
        "found.xp.reshape(timesteps, (-1,)), found.xp.int32",
        "found.xp.reshape(timesteps - 1, (-1,)), found.xp.int32",
        ("test_forward.py::test_timesteps_of_every_kind[BetaSchedule-array_api_strict]",),
    ),
    Mutant(
        "log-variance-as-log-deviation",
        "variance.py",
        "found.xp.exp(wide * 0.5) * fresh",
        "found.xp.exp(wide) * fresh",
        ("test_variance.py::test_log_variance", "test_variance.py::test_ends_of_the_fraction"),
    ),
    # ------------------------------------------------------------------ score-based samplers
    Mutant(
        "heun-slope-not-halved",
        "samplers/heun.py",
        "(nxt.sigma_t - carry * cur.sigma_t) / 2",
        "(nxt.sigma_t - carry * cur.sigma_t) / 2.002",
        ("test_sde_samplers.py::test_heun_is_algorithm_2",),
    ),
    Mutant(
        "heun-churn-in-the-middle",
        "samplers/heun.py",
        "last = np.append(~second[1:], True)",
        "last = ~second",
        ("test_sde_samplers.py::test_heun_is_algorithm_2",),
    ),
    Mutant(
        "reverse-diffusion-drift",
        "samplers/reverse_diffusion.py",
        "one_step_rows(2 - kept,",
        "one_step_rows(1 / kept,",
        ("test_sde_samplers.py::test_reverse_diffusion_is_algorithm_3_on_a_table",),
    ),
    Mutant(
        "langevin-step-not-doubled",
        "langevin.py",
        "expand(root * root * 0.5, x)",
        "expand(root * root * 0.25, x)",
        ("test_sde_samplers.py::test_langevin_is_algorithm_4_and_5",),
    ),
    Mutant(
        "karras-ve-raise-forgets-squares",
        "schedulers/karras_ve.py",
        "np.sqrt(raised**2 - levels**2)",
        "(raised - levels)",
        ("test_parity_sde.py::test_loop_in_float64",),
    ),
    Mutant(
        "karras-ve-corrects-the-next-step",
        "schedulers/karras_ve.py",
        "plan, row = steps.corrector, 2 * row + 1",
        "plan, row = steps.corrector, row + 1",
        ("test_parity_sde.py::test_loop_in_float64",),
    ),
    Mutant(
        "rounded-to-nothing-is-a-level",
        "schedulers/_told.py",
        "near = np.flatnonzero(np.abs(rounded - values) <= 1e-6 * np.abs(values))",
        "near = np.arange(len(values))",
        ("test_sde_facades.py::test_karras_ve_at_no_level",),
    ),
    Mutant(
        "sde-vp-forgets-the-sample",
        "schedulers/sde_vp.py",
        "bare_plan(1 + growth, slope, std)",
        "bare_plan(growth, slope, std)",
        ("test_sde_facades.py::test_sde_vp_at_times_of_a_run_and_at_any_others",),
    ),
    Mutant(
        "euler-maruyama-noise-forgets-width",
        "samplers/euler_maruyama.py",
        "sqrt(squared * h)",
        "sqrt(squared) * h",
        ("test_sde_samplers.py::test_the_moments_converge_to_those_of_the_data[EulerMaruyama, vp]",),
    ),
]
BY_ID = {mutant.id: mutant for mutant in MUTANTS}


def run_tests(copy: Path, killers: tuple[str, ...]) -> dict[str, str]:
    """Outcome of each test on a copy, by node id below tests."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "anystep_guard.py").write_text(GUARD)
        outcomes = Path(folder) / "outcomes.json"
        ours = [str(copy / "core"), str(copy / "backends")]
        paths = [*ours, folder, str(ROOT / "conformance"), str(ROOT / "tests")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ANYSTEP_COPY": str(copy),
            "ANYSTEP_OUTCOMES": str(outcomes),
            "OMP_NUM_THREADS": "1",
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "anystep_guard",
            "-p",
            "no:cacheprovider",
            "--noconftest",
        ]
        command += [
            "-c",
            str(ROOT / "pyproject.toml"),
            "-o",
            "addopts=--import-mode=importlib",
            "-q",
            "--tb=no",
        ]
        found = subprocess.run(
            [*command, *(str(ROOT / "tests" / killer) for killer in killers)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        if not outcomes.exists():
            raise RuntimeError(f"the tests did not run:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
        return {
            name.removeprefix("tests/"): outcome for name, outcome in json.loads(outcomes.read_text()).items()
        }


def verdict(killers: tuple[str, ...], outcomes: dict[str, str]) -> str:
    """Killed if every killer fails, survived if one passes; anything else is an error."""
    for killer in killers:
        mine = [o for name, o in outcomes.items() if name == killer or name.startswith(killer + "[")]
        if not mine or "error" in mine:
            return "error"
        if "failed" not in mine:
            return "survived"
    return "killed"


def copied(mutant: "Mutant | None", folder: str) -> Path:
    """A copy of the packages with an error planted, or without."""
    copy = Path(folder).resolve()
    for part in ("core", "backends"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "digit*.npz"))
    if mutant is not None:
        mutant.apply(copy)
    return copy


def run(mutant: Mutant) -> str:
    """Verdict on one mutant."""
    with tempfile.TemporaryDirectory() as folder:
        return verdict(mutant.killers, run_tests(copied(mutant, folder), mutant.killers))


def sound(mutants: list[Mutant]) -> list[str]:
    """Killers that do not pass on the package as it is, which could kill anything."""
    killers = tuple(sorted({killer for mutant in mutants for killer in mutant.killers}))
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_tests(copied(None, folder), killers)
    return [killer for killer in killers if verdict((killer,), outcomes) != "survived"]


def main() -> int:
    """Run the mutants named on the command line, or all."""
    from rich.console import Console
    from rich.progress import track

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", choices=[[], *BY_ID], metavar="id")
    chosen = [BY_ID[name] for name in parser.parse_args().ids] or MUTANTS
    console = Console(stderr=True)
    if unsound := sound(chosen):
        console.print("these tests do not pass without any mutant:", *unsound, sep="\n")
        return 2
    with ThreadPoolExecutor(2) as pool:
        results = list(track(pool.map(run, chosen), "mutants", len(chosen), console=console))
    print("| id | file | change | killed by | result |\n|---|---|---|---|---|")
    for mutant, result in zip(chosen, results, strict=True):
        change = f"`{mutant.original}` → `{mutant.mutated}`"
        print(
            f"| {mutant.id} | {mutant.file} | {change} | {'<br>'.join(mutant.killers)} | {result} |".replace(
                "\n", " "
            )
        )
    print(f"\n{results.count('killed')} of {len(results)} killed.")
    return 0 if set(results) == {"killed"} else 1 if "survived" in results else 2


if __name__ == "__main__":
    sys.exit(main())
