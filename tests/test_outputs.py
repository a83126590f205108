"""What `step` returns, beside a plain tuple and beside diffusers' output classes."""

import copy
import operator
import pickle
import threading
import time
import timeit
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput as Theirs
from hypothesis import given

from anystep.schedulers._outputs import (
    DDIMSchedulerOutput,
    DDPMSchedulerOutput,
    EulerAncestralDiscreteSchedulerOutput,
    EulerDiscreteSchedulerOutput,
    Lazy,
    LazyTuple,
    LMSDiscreteSchedulerOutput,
    SchedulerOutput,
)

FIELDS = ("prev_sample", "pred_original_sample")
ORDER = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)
indices = st.integers(-4, 4)
bounds = st.none() | indices
slices = st.builds(slice, bounds, bounds, bounds.filter(lambda step: step != 0))


class Counted:
    """A value and the number of times it was computed."""

    def __init__(self, value: Any) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.value


class ThreeOutput(SchedulerOutput):
    fields = ("prev_sample", "derivative", "pred_original_sample")
    derivative: Any
    pred_original_sample: Any


def lazily(values, lazy):
    """The values as a `LazyTuple`, those of `lazy` wrapped, and their counters."""
    counters = [Counted(value) for value in values]
    items = (Lazy(c) if flag else c.value for c, flag in zip(counters, lazy, strict=True))
    return LazyTuple(items), counters


def outcome(function, *args):
    """What a call returns or raises, comparably."""
    try:
        return function(*args)
    except Exception as error:
        return type(error), str(error)


# Lazy


def test_lazy_computes_once_and_lets_go():
    counter = Counted([1])
    lazy = Lazy(counter)
    assert repr(lazy) == "<not computed yet>" and counter.calls == 0
    assert lazy.value() is lazy.value() is counter.value
    assert counter.calls == 1 and repr(lazy) == "[1]"
    assert counter not in (
        lazy.func,
        *lazy.args,
    )  # so the model output that the computation held can be freed


def test_lazy_tries_again_after_a_failure():
    answers = iter([ZeroDivisionError("first"), 5])

    def make():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    out = LazyTuple((0, Lazy(make)))
    with pytest.raises(ZeroDivisionError, match="first"):
        out[1]
    assert out[1] == 5


def test_lazy_gives_every_thread_the_value():
    for _ in range(20):
        started, seen = threading.Barrier(4), []
        lazy = Lazy(lambda: time.sleep(0.001) or 7)

        def read():
            started.wait()
            seen.append(lazy.value())

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [7] * 4


# LazyTuple


@given(st.lists(st.integers(0, 3), min_size=1, max_size=3), st.data())
def test_lazy_tuple_does_what_a_tuple_does(values, data):
    plain = tuple(values)
    lazy = data.draw(st.lists(st.booleans(), min_size=len(plain), max_size=len(plain)))
    other = data.draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
    other_lazy = data.draw(st.lists(st.booleans(), min_size=len(other), max_size=len(other)))
    key, item, repeat = (
        data.draw(indices | slices),
        data.draw(st.integers(0, 3)),
        data.draw(st.integers(0, 2)),
    )

    def fresh():
        return lazily(plain, lazy)[0]

    def both(function, *args):
        assert outcome(function, fresh(), *args) == outcome(function, plain, *args)

    both(operator.getitem, key)
    for function in (tuple, list, len, repr, str, hash, sorted, set, sum, bool):
        both(function)
    both(lambda t: list(reversed(t)))
    both(lambda t: [*t])
    both(lambda t: (lambda *args: args)(*t))
    both(lambda t: (lambda a, *rest: (a, rest))(*t))
    both(lambda t: list(zip(t, t, strict=True)))
    both(operator.contains, item)
    both(lambda t: t.index(item))
    both(lambda t: t.index(item, 1))
    both(lambda t: t.count(item))
    both(operator.mul, repeat)
    both(lambda t: repeat * t)
    both(lambda t: pickle.loads(pickle.dumps(t)))
    both(copy.copy)
    both(copy.deepcopy)
    for function in (operator.add, *ORDER):
        both(function, other)
        both(lambda t, function=function: function(other, t))
        assert function(fresh(), lazily(other, other_lazy)[0]) == function(plain, other)
    both(operator.add, [1])
    both(operator.lt, "a")


def test_lazy_tuple_results_are_plain_tuples():
    def fresh():
        return LazyTuple((1, Lazy(lambda: 2)))

    results = (
        fresh()[:],
        fresh() + (3,),  # noqa: RUF005
        (0,) + fresh(),  # noqa: RUF005  the operator is what is tested
        fresh() * 2,
        tuple(fresh()),
        copy.copy(fresh()),
        copy.deepcopy(fresh()),
        pickle.loads(pickle.dumps(fresh())),
    )
    for result in results:
        assert type(result) is tuple and not any(type(item) is Lazy for item in result)
    assert isinstance(fresh(), tuple)


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t[0],
        lambda t: t[-2],
        lambda t: t[:1],
        lambda t: len(t),
        lambda t: bool(t),
        lambda t: isinstance(t, tuple),
        lambda t: next(iter(t)),
    ],
)
def test_lazy_tuple_computes_nothing_that_is_not_read(read):
    out, (_, second) = lazily((1, 2), (False, True))
    read(out)
    assert second.calls == 0
    assert out[1] == out[-1] == 2 and second.calls == 1


def test_lazy_tuple_unpacks_computing_once():
    out, (_, second) = lazily((1, 2), (False, True))
    a, b = out
    c, d = out
    assert (a, b, c, d) == (1, 2, 1, 2) and second.calls == 1
    match out:
        case (first, last):
            assert (first, last) == (1, 2)
        case _:
            pytest.fail("a tuple pattern must match")


def test_lazy_tuple_holds_arrays():
    x, y = np.arange(3.0), np.ones(3)
    out = LazyTuple((x, Lazy(lambda: y)))
    assert out[0] is x and out[1] is y and out == (x, y) and x in out
    assert np.asarray(LazyTuple((x, Lazy(lambda: y)))).shape == (2, 3)
    with pytest.raises(TypeError, match="unhashable"):
        hash(out)


# SchedulerOutput


def ours_and_theirs(first, second):
    return DDIMSchedulerOutput(first, second), Theirs(first, second)


@given(st.integers(), st.none() | st.integers(), indices | slices | st.sampled_from([*FIELDS, "other"]))
def test_output_reads_as_diffusers_does(first, second, key):
    ours, theirs = ours_and_theirs(first, second)
    for function in (list, len, bool, dict, lambda out: out.to_tuple(), lambda out: out.prev_sample):
        assert function(ours) == function(theirs)
    for function in (dict.keys, dict.values, dict.items):
        assert list(getattr(ours, function.__name__)()) == list(function(theirs))
    assert ours.pred_original_sample == theirs.pred_original_sample
    assert (key in ours) == (key in theirs) if not isinstance(key, slice) else True
    assert {**ours} == {**theirs} and ours.get("other", 5) == 5
    mine, its = outcome(operator.getitem, ours, key), outcome(operator.getitem, theirs, key)
    assert mine == its


@pytest.mark.parametrize(
    "read",
    [
        lambda out: out.prev_sample,
        lambda out: out["prev_sample"],
        lambda out: out[0],
        lambda out: out[:1],
        lambda out: (len(out), list(out), out.keys(), "pred_original_sample" in out),
        repr,
        bool,
        hash,
        lambda out: out == 3,
    ],
)
def test_output_computes_nothing_that_is_not_read(read):
    counter = Counted(2)
    out = DDIMSchedulerOutput(1, Lazy(counter))
    read(out)
    assert counter.calls == 0
    assert out.pred_original_sample == out[1] == out["pred_original_sample"] == 2
    assert list(out.values()) == [1, 2] and out.to_tuple() == (1, 2) and type(out.to_tuple()) is tuple
    assert counter.calls == 1


def test_output_says_what_is_not_computed_yet():
    out = DDIMSchedulerOutput(1, Lazy(lambda: 2))
    assert repr(out) == "DDIMSchedulerOutput(prev_sample=1, pred_original_sample=<not computed yet>)"
    assert out[1] == 2
    assert repr(out) == "DDIMSchedulerOutput(prev_sample=1, pred_original_sample=2)"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda out: pickle.loads(pickle.dumps(out))])
def test_output_copies_with_its_values(copied):
    out = ThreeOutput(np.arange(2.0), None, Lazy(lambda: np.ones(2)))
    other = copied(out)
    assert type(other) is ThreeOutput and list(other) == ["prev_sample", "pred_original_sample"]
    np.testing.assert_array_equal(other.prev_sample, out.prev_sample)
    np.testing.assert_array_equal(other.pred_original_sample, np.ones(2))
    other.prev_sample = 5
    assert isinstance(out.prev_sample, np.ndarray)


def test_output_with_other_fields():
    out = ThreeOutput(1, pred_original_sample=Lazy(lambda: 3))
    assert (out.prev_sample, out.derivative, out.pred_original_sample) == (1, None, 3)
    assert out.to_tuple() == out[:] == (1, 3) and out[1] == 3
    assert SchedulerOutput(1).fields == ("prev_sample",) and not hasattr(SchedulerOutput(1), "derivative")


@pytest.mark.parametrize(
    "kind",
    [
        DDPMSchedulerOutput,
        DDIMSchedulerOutput,
        EulerDiscreteSchedulerOutput,
        EulerAncestralDiscreteSchedulerOutput,
        LMSDiscreteSchedulerOutput,
    ],
)
def test_output_classes_of_two_fields(kind):
    out = kind(pred_original_sample=2, prev_sample=1)
    assert kind.fields == FIELDS and out.to_tuple() == (1, 2) and not hasattr(out, "__dict__")
    assert isinstance(out, SchedulerOutput)


def test_output_can_be_written_to():
    ours, theirs = ours_and_theirs(1, 2)
    for out in (ours, theirs):
        out.prev_sample, out.pred_original_sample = 3, 4
        assert out.to_tuple() == (3, 4) and out["prev_sample"] == 3
    assert not hasattr(ours, "__dict__")  # so that a misspelt name raises
    with pytest.raises(AttributeError):
        ours.prev_smaple = 1


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((), {}, "prev_sample is missing"),
        ((), {"pred_original_sample": 1}, "prev_sample is missing"),
        ((1, 2, 3), {}, "3 values; it takes prev_sample, pred_original_sample"),
        ((1,), {"prev_sample": 2}, "unexpected or repeated prev_sample"),
        ((1,), {"derivative": 2}, "unexpected or repeated derivative"),
        ((1, 2), {"derivative": 2}, "unexpected or repeated derivative"),
    ],
)
def test_output_refuses_wrong_values(args, named, message):
    with pytest.raises(TypeError, match=f"DDIMSchedulerOutput.*{message}"):
        DDIMSchedulerOutput(*args, **named)


def test_output_costs_less_than_diffusers():
    def seconds(make):
        return min(timeit.repeat(make, number=500, repeat=20))

    x, lazy = object(), Lazy(int)
    assert 3 * seconds(lambda: DDIMSchedulerOutput(x, lazy)) < seconds(lambda: Theirs(x, x))
