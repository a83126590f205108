"""Options that several facades have, and lists of cases made of them."""

import numpy as np
import pytest

from reference.trajectories import Case

STEPS = (1, 2, 5, 20, 50)
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
THRESHOLDS = {
    f"thresholding to {value} at {ratio}": {
        "thresholding": True,
        "sample_max_value": value,
        "dynamic_thresholding_ratio": ratio,
    }
    for value in (1.0, 1.5)
    for ratio in (0.995, 0.7)
}
V = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
BETA = {"use_beta_sigmas": True}
RESPACED = {"karras": KARRAS, "exponential": EXPONENTIAL, "beta": BETA}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAINED = {"trained_betas": np.geomspace(2e-4, 0.09, 100).tolist(), "num_train_timesteps": 100}
FEW = {"num_train_timesteps": 50, "beta_end": 0.2}


def cases_of(name, config=None, steps=STEPS, **always):
    """The function that makes a facade's cases of one option: one for each number of steps."""

    def over(option, config=config, steps=steps, **rest):
        return [Case(name, option, count, config or {}, **always | rest) for count in steps]

    return over


def spaced(over, choice, spacings=SPACINGS, base=None):
    """Cases of one choice with every spacing of the timesteps."""
    (named,) = choice.values()
    for spacing in spacings:
        config = (base or {}) | choice | {"timestep_spacing": spacing}
        yield from over(f"{named}, {spacing}", config=config)


def clipped(over, prediction, base):
    """Cases of a prediction clipped, and of one whose first level is pure noise."""
    told = {"prediction_type": prediction}
    yield from over(f"{prediction}, clip_sample", told)
    zero = base | told | {"rescale_betas_zero_snr": True}
    yield from over(f"{prediction}, zero SNR, leading", zero)
    if prediction != "epsilon":  # with epsilon the first step divides by zero: see the errors of the facades
        yield from over(f"{prediction}, zero SNR, trailing", zero | {"timestep_spacing": "trailing"})


def each(cases, *steps):
    """A test of every case, or of those with these numbers of steps."""
    chosen = [case for case in cases if not steps or case.steps in steps]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.id)
