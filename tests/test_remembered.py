"""`set_timesteps` asked the same again: the same answer without computing, and never somebody else's."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

import anystep
from anystep.schedulers import _remembered

CLASSES = [
    found
    for name in anystep.schedulers.__all__
    if hasattr(found := getattr(anystep.schedulers, name), "set_timesteps")
    and any(getattr(value, "quiet", False) for base in found.__mro__ for value in vars(base).values())
]
X = np.random.default_rng(0).normal(size=(1, 2, 4, 4))


@pytest.fixture(autouse=True)
def empty():
    _remembered._answers.clear()


def tables(scheduler):
    names = ("timesteps", "sigmas", "num_inference_steps", "step_index", "begin_index", "model_outputs")
    return {name: np.array(getattr(scheduler, name, 0), dtype=object).tolist() for name in names}


def drawn(scheduler):
    """A run with default arguments; of the classes with other steps, nothing."""
    x = X
    if list(inspect.signature(getattr(scheduler, "step", print)).parameters)[:3] != [
        "model_output",
        "timestep",
        "sample",
    ]:
        return x
    if isinstance(scheduler, anystep.RePaintScheduler):
        return x
    for t in scheduler.timesteps:
        options = (
            {"generator": np.random.default_rng(1)}
            if "generator" in inspect.signature(scheduler.step).parameters
            else {}
        )
        scheduler.is_scale_input_called = True
        x = scheduler.step(0.3 * x, t, x, **options).prev_sample
    return x


def test_most_classes_remember():
    assert len(CLASSES) >= 11


@pytest.mark.parametrize("cls", CLASSES)
def test_the_same_answer(cls):
    first, second = cls(), cls()
    first.set_timesteps(7)
    assert len(_remembered._answers) == 1
    fresh, image = tables(first), drawn(first)
    second.set_timesteps(7)
    assert len(_remembered._answers) == 1
    assert tables(second) == fresh
    np.testing.assert_array_equal(drawn(second), image)
    first.set_timesteps(7)  # in the middle of nothing, and after a run
    assert tables(first) == fresh
    np.testing.assert_array_equal(drawn(first), image)
    again = pickle.loads(pickle.dumps(copy.deepcopy(second)))
    again.set_timesteps(7)
    np.testing.assert_array_equal(drawn(again), image)


def test_nothing_is_computed(monkeypatch):
    scheduler = anystep.EulerDiscreteScheduler()
    scheduler.set_timesteps(9)
    monkeypatch.setattr(anystep.EulerDiscreteScheduler, "_chain", None)
    anystep.EulerDiscreteScheduler().set_timesteps(9)
    scheduler.set_timesteps(9)
    with pytest.raises(TypeError):
        scheduler.set_timesteps(10)


@pytest.mark.parametrize("cls", CLASSES)
def test_nothing_that_can_change_is_shared(cls):
    first, second = cls(), cls()
    first.set_timesteps(5)
    expected = tables(first)
    first.timesteps[:] = 3
    if hasattr(first, "model_outputs"):
        first.model_outputs[0] = "somebody's"
    second.set_timesteps(5)
    assert tables(second) == expected
    if hasattr(second, "model_outputs"):
        second.model_outputs[0] = "mine"
        third = cls()
        third.set_timesteps(5)
        assert tables(third) == expected


def test_what_an_answer_depends_on():
    """Config, corrections, device and what the class says; each change gives what a scheduler without a past gives."""
    euler = anystep.EulerDiscreteScheduler
    seen = []
    for make in (
        lambda: euler(),
        lambda: euler(use_karras_sigmas=True),
        lambda: euler(beta_end=0.03),
        lambda: euler(3, trained_betas=[0.1, 0.2, 0.3]),
        lambda: euler().corrected(),
        lambda: euler().corrected("linspace-single-step"),
        lambda: anystep.EulerAncestralDiscreteScheduler(),
    ):
        for steps in (1, 3):
            scheduler = make()
            scheduler.set_timesteps(steps)
            known = tables(scheduler)
            _remembered._answers, kept = type(_remembered._answers)(), _remembered._answers
            alone = make()
            alone.set_timesteps(steps)
            assert tables(alone) == known
            _remembered._answers = kept
            seen.append(len(kept))
    assert seen == list(range(1, len(seen) + 1))
    flow = anystep.FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(4)
    before = np.array(flow.sigmas)
    flow.set_shift(3.0)
    flow.set_timesteps(4)
    assert (flow.sigmas != before).any()


def test_devices():
    scheduler = anystep.DDIMScheduler()
    scheduler.set_timesteps(4)
    assert isinstance(scheduler.timesteps, np.ndarray)
    scheduler.set_timesteps(4, device=torch.device("cpu"))
    assert isinstance(scheduler.timesteps, torch.Tensor)
    other = anystep.DDIMScheduler()
    other.set_timesteps(4)
    assert isinstance(other.timesteps, np.ndarray)
    other.set_timesteps(4, device=torch.device("cpu"))
    assert (
        isinstance(other.timesteps, torch.Tensor)
        and other.timesteps.data_ptr() != scheduler.timesteps.data_ptr()
    )
    other.set_timesteps(4)  # None leaves the device as it was
    assert isinstance(other.timesteps, torch.Tensor)


def test_equal_arguments_of_other_types():
    scheduler = anystep.DDIMScheduler()
    scheduler.set_timesteps(1)
    with pytest.raises(ValueError, match="num_inference_steps"):
        scheduler.set_timesteps(True)
    with pytest.raises(ValueError, match="num_inference_steps"):
        scheduler.set_timesteps(1.5)


def test_arrays_are_not_remembered():
    scheduler = anystep.EulerDiscreteScheduler()
    sigmas = torch.tensor([3.0, 1.0, 0.0])
    scheduler.set_timesteps(sigmas=sigmas)
    sigmas[0] = 5.0
    scheduler.set_timesteps(sigmas=sigmas)
    assert scheduler.sigmas.tolist() == [5.0, 1.0, 0.0] and not _remembered._answers


def test_errors_are_not_remembered():
    scheduler = anystep.DDIMScheduler()
    scheduler.set_timesteps(4)
    state = tables(scheduler)
    for _ in range(2):
        with pytest.raises(ValueError, match="num_inference_steps"):
            scheduler.set_timesteps(0)
    assert tables(scheduler) == state and "_committed" not in vars(scheduler)
    assert len(_remembered._answers) == 1


def test_a_run_begins_anew():
    scheduler = anystep.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    drawn(scheduler)
    scheduler.set_begin_index(2)
    scheduler.set_timesteps(4)
    assert scheduler.step_index is None and scheduler.begin_index is None
    assert scheduler.is_scale_input_called


def test_a_replaced_config():
    scheduler = anystep.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    before = np.array(scheduler.sigmas)
    scheduler.register_to_config(use_karras_sigmas=True)
    scheduler.set_timesteps(4)
    assert (scheduler.sigmas != before).any()


def test_bounded():
    scheduler = anystep.DDIMScheduler()
    for steps in range(1, _remembered.CAPACITY + 20):
        scheduler.set_timesteps(steps)
    assert len(_remembered._answers) == _remembered.CAPACITY
