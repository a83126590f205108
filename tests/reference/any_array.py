"""Facades on the arrays of every library: the cells of their tests, and what is asked there of more than one of them."""

import jax
import numpy as np
import pytest
import torch

from anystep._array import backend, kind

ARRAYS = [
    ("numpy", None, ("float16", "bfloat16", "float32", "float64")),
    ("torch", None, ("float16", "bfloat16", "float32", "float64")),
    ("jax", None, ("float16", "bfloat16", "float32")),
    ("array_api_strict", None, ("float32", "float64")),
    ("array_api_strict", "device1", ("float32", "float64")),
]
CELLS = [(name, device, dtype) for name, device, dtypes in ARRAYS for dtype in dtypes]
X = np.zeros((2, 3, 4, 4), dtype=np.float32)
FAILURES = [
    (lambda s, t: s.set_timesteps(0), ValueError, "num_inference_steps=0"),
    (lambda s, t: s.set_timesteps(2.5), ValueError, "num_inference_steps=2.5"),
    (lambda s, t: s.set_timesteps(True), ValueError, "num_inference_steps=True"),
    (lambda s, t: s.set_timesteps(5, device="quantum"), ValueError, "quantum"),
    (lambda s, t: s.set_begin_index(-1), ValueError, "begin_index=-1"),
    (lambda s, t: s.corrected("nonsense"), ValueError, "nonsense"),
    (lambda s, t: s.step(X, t, X[:1]), ValueError, r"has shape \(2, 3, 4, 4\): expected \(1, 3, 4, 4\)"),
]
"""Calls that no facade takes, with the error and what it names."""


def halved(scheduler, t, x):
    """A model's output, half of its input; NumPy promotes bfloat16 * 0.5, so it is cast back."""
    return kind(x).xp.astype(scheduler.scale_model_input(x, t) * 0.5, x.dtype)


def check_equal_bits(run, reference, library):
    """Arrays of one type, dtype and device, equal to NumPy's of that dtype to the last bit."""
    for array, expected in zip(run, reference, strict=True):
        assert type(array) is type(run[0])
        assert array.dtype == run[0].dtype
        assert str(getattr(array, "device", "cpu")) == str(getattr(run[0], "device", "cpu"))
        np.testing.assert_array_equal(backend(library).to_numpy(array), backend("numpy").to_numpy(expected))


def check_failure(made, advance, state, done, call, error, message):
    """A call that fails after `done` steps says why and leaves the state; the run ends as if it had not been."""
    runs = []
    for fails in (False, True):
        scheduler, x, rng = made(), X + 1, np.random.default_rng(3)
        for i, t in enumerate(scheduler.timesteps):
            if fails and i == done:
                before = state(scheduler)
                with pytest.raises(error, match=message):
                    call(scheduler, t)
                assert state(scheduler) == before
            x = advance(scheduler, t, x, rng).prev_sample
        runs.append(x)
    np.testing.assert_array_equal(*runs)


def check_tables(scheduler, names):
    """Tables of the library asked for."""
    places = [(None, np.ndarray), (torch.device("cpu"), torch.Tensor), (jax.devices()[0], jax.Array)]
    for device, wanted in places:
        scheduler.set_timesteps(4, device=device)
        assert all(isinstance(getattr(scheduler, name), wanted) for name in names)
