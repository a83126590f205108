"""The suite must fail: faults of every kind, planted in a toy array library, its adapter or a scheduler."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

import toys
from anystep import DDIM, BetaSchedule, Leading, Plan, Threshold
from anystep._array import namespace
from anystep_conformance import checks, gaps
from anystep_conformance.adapters import ADAPTER, DRAWS
from anystep_conformance.case import CHECKS, MODES, Case, Violation
from anystep_conformance.checks import run
from anystep_conformance.compare import Difference
from anystep_conformance.finding import find_libraries
from anystep_conformance.gaps import Gap
from anystep_conformance.libraries import library, refusing_reads
from anystep_conformance.subjects import SUBJECTS
from anystep_conformance.walk import reference

STOCHASTIC = next(subject for subject in SUBJECTS if subject.name == "DDPM small")
MULTISTEP = next(subject for subject in SUBJECTS if subject.name == "LMS")
BOUNDED = next(subject for subject in SUBJECTS if "dynamic" in subject.name)


def toy(fault=None, adapter=None):
    """The toy library as the suite finds it by its dotted path."""
    made = toys.adapter_with(None) if adapter is True else adapter
    if made is not None:
        made.xp = toys.library(fault)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toys, "namespace", made or toys.library(fault))
        (found,) = find_libraries(["toys:namespace"])
    return found


@pytest.mark.parametrize("subject", [STOCHASTIC, MULTISTEP, BOUNDED], ids=lambda s: s.name)
@pytest.mark.parametrize("mode", ["eager", "index"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("adapter", [None, True], ids=["namespace alone", "adapter"])
def test_a_sound_library_passes_with_and_without_an_adapter(subject, mode, dtype, adapter):
    result = run(Case(subject, toy(adapter=adapter), dtype, mode))
    assert (result.outcome, result.distance) == ("passed", 0.0), result.reason


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("crashes", "smoke", "RuntimeError: the toy is broken"),
        ("namespace", "namespace", "has namespace numpy: expected toys"),
        ("dtype", "dtype", "expected float32"),
        ("shape", "shape", r"has shape \(1, .*2, 3, 4\): expected \(2, 3, 4\)"),
        ("device", "device", "has device toy:1: expected toy:0"),
        ("ulp", "values", "1 ulp apart, at most 0 allowed"),
        ("reads", "laziness", "a value was read from the device"),
    ],
)
def test_each_check_catches_its_fault(fault, check, message):
    """Deterministic DDIM of a model that predicts the sample, so that in most rows x + ... is the step's last operation."""
    result = run(Case(planned(None), toy(fault), "float32", "eager"))
    assert result.outcome == "failed"
    assert check in CHECKS and result.check == check, result.reason
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(result.reason)


def test_a_result_that_is_an_input_is_caught():
    """x * 1.0 is x in this toy, and the plan stands still: values are right, and a caller who writes to them loses his input."""
    one = np.broadcast_to([[[1.0, 0.0, 0.0]]], (8, 1, 3))
    levels = np.linspace(1.0, 0.0, 9)
    plan = Plan(np.arange(8.0), levels, levels, np.ones(8), np.broadcast_to([0.0, 0.5], (8, 2)), one)
    subject = SimpleNamespace(name="planted", plan=lambda steps=8: plan)
    assert run(Case(subject, toy(), "float32", "eager")).outcome == "passed"
    result = run(Case(subject, toy("aliases"), "float32", "eager"))
    assert (result.outcome, result.check) == ("failed", "purity")
    assert "the sample that call 0 was given shares memory with a result that is new" in result.reason


def test_an_input_that_is_written_to_is_caught():
    result = run(Case(planned(None), toy("mutates"), "float32", "eager"))
    assert (
        result.outcome == "failed" and result.check == "values"
    )  # the model's input, which is the sample itself
    scaled = next(subject for subject in SUBJECTS if subject.name == "Euler, flow")
    assert run(Case(scaled, toy("mutates"), "float32", "eager")).outcome == "failed"


def test_an_input_that_is_written_to_when_it_is_no_longer_needed_is_caught(monkeypatch):
    """The noise is scaled in place: every value is right."""
    stepped = checks.call

    def call(plan, i, state, output, noise):
        made = stepped(plan, i, state, output, noise)
        noise[0][...] = noise[0] * 0.5
        return made

    monkeypatch.setattr(checks, "call", call)
    result = run(Case(STOCHASTIC, toy(), "float32", "eager"))
    assert (result.outcome, result.check) == ("failed", "purity")
    assert "noise 1 that call 0 was given was written to" in result.reason


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
@pytest.mark.parametrize("fault", ["crashes", "dtype", "shape", "device", "ulp", "reads"])
def test_every_subject_catches_a_broken_library(subject, fault):
    result = run(Case(subject, toy(fault), "float32", "eager"))
    assert result.outcome == "failed", "the subject has no sum in it" if fault == "ulp" else result


@pytest.mark.parametrize(
    ("fault", "about", "check", "message"),
    [
        ("order", DRAWS, "noise", "the draw of a list of NumPy generators is not NumPy's"),
        ("forgets the seed", DRAWS, "noise", "two seeds of the library's own generator gave one draw"),
        ("stands still", DRAWS, "noise", "the same noise at two steps"),
        ("aliases", ADAPTER, "purity", "own memory|memory that it was given"),
        ("any device", ADAPTER, "device", "names no device: expected ValueError"),
        ("incomplete", ADAPTER, "smoke", "the adapter has no uniform"),
    ],
)
def test_a_broken_adapter_is_caught(fault, about, check, message):
    made = toys.adapter_with(fault)
    for fault_or_none, outcome in ((made, "failed"), (toys.adapter_with(None), "passed")):
        result = run(Case(about, toy(adapter=fault_or_none), "float32", "eager", 2))
        assert result.outcome == outcome, result.reason
        if outcome == "failed":
            assert result.check == check
            with pytest.raises(AssertionError, match=message):
                raise AssertionError(result.reason)


def test_a_generator_that_forgets_its_seed_is_caught_in_a_sample():
    result = run(Case(STOCHASTIC, toy(adapter=toys.adapter_with("forgets the seed")), "float32", "eager"))
    assert (result.outcome, result.check) == ("failed", "noise")
    assert "two seeds" in result.reason


# Schedulers


@dataclass(frozen=True)
class Reads(Threshold):
    """Branches on a value."""

    def __call__(self, x0):
        xp = namespace(x0)
        return xp.clip(x0, -1.0, 1.0) if float(xp.sum(xp.abs(x0))) > 0 else x0


@dataclass(frozen=True)
class Keeps(Threshold):
    """Writes to what it is given, the sample where the model predicts it."""

    def __call__(self, x0):
        x0[...] = 0.0
        return x0


def planned(threshold):
    plan = DDIM().plan(Leading().levels(BetaSchedule.named("linear"), 8), "sample", threshold)
    return SimpleNamespace(name="planted", plan=lambda steps=8: plan)


@pytest.mark.parametrize("name", ["array_api_strict", "array_api_strict on device1", "torch", "jax"])
def test_a_scheduler_that_reads_the_device_is_caught(name):
    pytest.importorskip(library(name).module)
    result = run(Case(planned(Reads()), library(name), "float32", "eager"))
    assert (result.outcome, result.check) == ("failed", "laziness")
    assert "read a value" in result.reason


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_scheduler_that_reads_the_device_does_not_compile(name):
    pytest.importorskip(library(name).module)
    assert run(Case(planned(Reads()), library(name), "float32", "compile")).outcome == "failed"


def test_reads_are_refused_only_inside():
    x = toys.namespace.asarray(1.0)
    with pytest.raises(RuntimeError, match="a value was read from the device inside a step"):
        refusing_reads(lambda state: bool(state[0]), (x, None))
    assert bool(x) and float(x) == 1.0


@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_step_that_is_not_its_plans_is_caught_by_exact_arithmetic(column):
    """Both NumPy and the library under test agree on a wrong step: only the independent evaluation sees it."""
    plan = SUBJECTS[0].plan(8)
    wrong = plan.update.copy()
    wrong[4, 0, column] *= 1 + 1e-5
    wrong[4, 0, column] += 1e-5
    tables = (plan.timesteps, plan.alpha, plan.sigma, plan.input_scale, plan.estimate)
    broken = Plan(*tables, wrong, plan.threshold)
    broken.prepare(np.zeros(1))
    object.__setattr__(
        broken, "update", plan.update
    )  # the step keeps its own tables; the documented ones are right
    subject = SimpleNamespace(name="planted", plan=lambda steps=8: broken)
    reference.cache_clear()  # it goes by the documented tables, which are those of a sound plan
    try:
        result = run(Case(subject, library("numpy"), "float32", "eager"))
    finally:
        reference.cache_clear()
    assert (result.outcome, result.check) == ("failed", "values")
    assert "against exact arithmetic" in result.reason


def test_a_wrong_order_of_two_noises_is_caught():
    from anystep_conformance.subjects import random_plan

    plan = random_plan(8, memories=1, noises=2, seed=1, density=1.0)
    subject = SimpleNamespace(name="planted", plan=lambda steps=8: plan)
    assert run(Case(subject, library("numpy"), "float32", "eager")).outcome == "passed"
    walked = checks.walk

    def swapped(*arguments):
        for given, made in walked(*arguments):
            state, output, noise = given
            from anystep_conformance.walk import Inputs, call

            yield given, call(plan, 0 if made is None else swapped.row, *Inputs(state, output, noise[::-1]))
            swapped.row += 1

    swapped.row = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "walk", swapped)
        result = run(Case(subject, library("numpy"), "float32", "eager"))
    assert (result.outcome, result.check) == ("failed", "values")


# Gaps


@pytest.fixture
def gap(monkeypatch):
    """One planned gap of a library whose sums are an ulp off."""
    found = Gap(
        "toys", ("eager",), ("float32",), lambda plan: plan.threshold is None, 1.0, "the toy is an ulp off"
    )
    monkeypatch.setattr(gaps, "GAPS", (found,))
    return found


def test_a_gap_is_expected_where_it_is_listed(gap):
    result = run(Case(SUBJECTS[0], toy("ulp"), "float32", "eager"))
    assert (result.outcome, result.reason, result.distance) == ("gap", gap.reason, 1.0)
    assert run(Case(SUBJECTS[0], toy("ulp"), "float64", "eager")).outcome == "failed"
    assert run(Case(SUBJECTS[0], toy("ulp"), "float32", "index")).outcome == "failed"


def test_a_gap_that_vanishes_fails(gap):
    result = run(Case(SUBJECTS[0], toy(), "float32", "eager"))
    assert (result.outcome, result.check) == ("failed", "gap")
    assert "the expected gap is gone: take it out of gaps.py (the toy is an ulp off)" in result.reason


def test_a_gap_excuses_nothing_else(gap):
    for fault, check in (("crashes", "smoke"), ("dtype", "dtype")):
        result = run(Case(planned(None), toy(fault), "float32", "eager"))
        assert (result.outcome, result.check) == ("failed", check)


def test_a_gap_has_a_size(monkeypatch):
    small = Gap("toys", ("eager",), ("float32",), lambda plan: True, 0.5, "too small")
    monkeypatch.setattr(gaps, "GAPS", (small,))
    assert run(Case(SUBJECTS[0], toy("ulp"), "float32", "eager")).outcome == "failed"


def test_every_gap_listed_names_what_exists():
    for gap in gaps.GAPS:
        assert gap.reason and gap.ulp > 0 and set(gap.modes) <= set(MODES)
        assert any(gap.subjects(subject.plan(8)) for subject in SUBJECTS)


# The parts


def test_differences_and_violations_name_their_check():
    assert Difference("dtype", "x").aspect == "dtype" and Difference("dtype", "x").distance == np.inf
    assert Violation("purity", "x").check == "purity"
    assert issubclass(Difference, AssertionError) and issubclass(Violation, AssertionError)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "array_api_strict"])
def test_a_sound_library_passes_its_own_checks(name):
    entry = library(name)
    pytest.importorskip(entry.module)
    for about in (ADAPTER, DRAWS):
        result = run(Case(about, entry, "float32", "eager", 2))
        assert result.outcome == "passed", result.reason
