"""What a scheduler's `step` returns: an output object, or a tuple where `return_dict=False`.

Most loops read the next sample and nothing else, so the second result (the estimate of the clean sample) may be
handed over as `Lazy`: it is computed when it is read, once, and never if it is not.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Self, cast

__all__ = [
    "DDIMSchedulerOutput",
    "DDPMSchedulerOutput",
    "EulerAncestralDiscreteSchedulerOutput",
    "EulerDiscreteSchedulerOutput",
    "FlowMatchEulerDiscreteSchedulerOutput",
    "HeunDiscreteSchedulerOutput",
    "KarrasVeOutput",
    "LMSDiscreteSchedulerOutput",
    "Lazy",
    "LazyTuple",
    "RePaintSchedulerOutput",
    "SchedulerOutput",
    "SdeVeOutput",
    "VQDiffusionSchedulerOutput",
]


class Lazy(partial[Any]):
    """A value that a function computes, of the arguments given with it, when it is first asked for.

    Two threads that ask at the same moment may both compute it. If the function raises, the next reader tries again.

    Examples
    --------
    >>> later = Lazy(print, "computed")
    >>> later.value(), later.value()
    computed
    (None, None)
    """

    # A partial, because that is made without running Python: every step makes one, and few are read.

    def value(self) -> Any:
        """Compute on the first call, and let go of what the computation held on to."""
        if self.func is not _done:
            state = (_done, (self(),), {}, None)
            self.__setstate__(state)  # pyright: ignore[reportAttributeAccessIssue]
        return self()

    def __repr__(self) -> str:
        return repr(self()) if self.func is _done else "<not computed yet>"


def _done(value: Any) -> Any:
    return value


def _now(value: Any) -> Any:
    return cast(Any, value).value() if type(value) is Lazy else value


def _computed(function: Callable[..., Any]) -> Any:
    """The method that applies `function` to the plain tuple of all values."""

    def method(self: "LazyTuple", *args: Any) -> Any:
        return function(tuple(self), *args)

    return method


_item = cast(Any, tuple).__getitem__


class LazyTuple(tuple[Any, ...]):
    """A tuple whose `Lazy` items are computed when they are read.

    `out[0]` and `out[:1]` compute nothing that they do not show; whatever needs every item (unpacking, `tuple(out)`,
    comparison, `+`, `repr`) computes them all. Copies and pickles are plain tuples.

    Notes
    -----
    Code written in C that looks into a tuple's memory (`"%s" % out`, `torch.stack(out)`), and tree utilities that know
    exact types only (`jax.tree`, `torch.utils._pytree`), need the plain tuple: give them `tuple(out)`.

    Examples
    --------
    >>> out = LazyTuple((1, Lazy(lambda: print("computed") or 2)))
    >>> out[0]
    1
    >>> a, b = out
    computed
    >>> b, out == (1, 2)
    (2, True)
    """

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        item: Any = _item(self, key)
        if item.__class__ is Lazy:
            return item.value()
        return tuple(map(_now, item)) if key.__class__ is slice else item

    def __iter__(self) -> Iterator[Any]:
        return map(_now, super().__iter__())

    def __radd__(self, other: tuple[Any, ...]) -> tuple[Any, ...]:
        return other + tuple(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)

    __contains__ = _computed(operator.contains)
    __eq__ = _computed(operator.eq)
    __ne__ = _computed(operator.ne)
    __lt__ = _computed(operator.lt)
    __le__ = _computed(operator.le)
    __gt__ = _computed(operator.gt)
    __ge__ = _computed(operator.ge)
    __add__ = _computed(operator.add)
    __mul__ = _computed(operator.mul)
    __rmul__ = _computed(operator.mul)
    __hash__ = _computed(hash)
    __repr__ = _computed(repr)
    index = _computed(cast(Any, tuple).index)
    count = _computed(cast(Any, tuple).count)


def _field(index: int) -> Any:
    """The attribute that is value number `index` of an output."""

    def get(output: Any) -> Any:
        value = output._values[index]
        return value.value() if value.__class__ is Lazy else value

    def put(output: Any, value: Any) -> None:
        output._values[index] = value

    return property(get, put)


class SchedulerOutput(Mapping[str, Any]):
    """What `step` returns: named values, in the order of `fields`.

    Values are read by name (`out.prev_sample`, `out["prev_sample"]`) or by position (`out[0]`, `out[:1]`); those that
    are None are left out of everything but attribute access. To add fields, a subclass lists them all in `fields`.

    Parameters
    ----------
    prev_sample : array
        The sample of the next, less noisy level; the model's next input.
    *values, **named
        The other fields, by position or by name; None if not given. A `Lazy` is computed when it is read.

    Raises
    ------
    TypeError
        For a value too many, or one whose name is not in `fields`.

    Examples
    --------
    >>> out = DDIMSchedulerOutput(prev_sample=1.0)
    >>> out.prev_sample, out[0], list(out), out.pred_original_sample
    (1.0, 1.0, ['prev_sample'], None)
    """

    __slots__ = ("_values",)
    fields: ClassVar[tuple[str, ...]] = ("prev_sample",)
    prev_sample = _field(0)

    def __init_subclass__(cls) -> None:
        for index, name in enumerate(cls.fields):
            setattr(cls, name, _field(index))

    def __init__(self, *values: Any, **named: Any) -> None:
        missing = len(self.fields) - len(values)
        if named and missing > 0:
            values += tuple([named.pop(name, None) for name in self.fields[-missing:]])
        elif missing > 0:
            values += (None,) * missing
        if named or missing < 0 or values[0] is None:
            wrong = f"unexpected or repeated {', '.join(named)}" if named else f"{len(values)} values"
            wrong = f"{self.fields[0]} is missing" if not named and missing >= 0 else wrong
            raise TypeError(f"{type(self).__name__}(): {wrong}; it takes {', '.join(self.fields)}.")
        self._values = [*values]

    @classmethod
    def of(cls, values: Iterable[Any]) -> Self:
        """An output of all its values in order, unchecked: what each step makes."""
        output = cls.__new__(cls)
        output._values = [*values]
        return output

    def _given(self) -> dict[str, Any]:
        """The values that are not None, the lazy ones as they are."""
        return {
            name: value for name, value in zip(self.fields, self._values, strict=True) if value is not None
        }

    def __getitem__(self, key: Any) -> Any:
        given = self._given()
        return _now(given[key]) if isinstance(key, str) else LazyTuple(given.values())[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given())

    def __len__(self) -> int:
        return len(self._given())

    def __contains__(self, key: object) -> bool:
        return key in self._given()

    __eq__ = object.__eq__  # arrays have no one answer to ==

    def __hash__(self) -> int:
        return id(self)

    def to_tuple(self) -> tuple[Any, ...]:
        """All values that are not None, computed."""
        return tuple(map(_now, self._given().values()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(map(_now, self._values))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._given().items())})"


class DDPMSchedulerOutput(SchedulerOutput):
    """`prev_sample`, and `pred_original_sample`: the clean sample as estimated at this level."""

    __slots__ = ()
    fields = ("prev_sample", "pred_original_sample")
    pred_original_sample: Any


class DDIMSchedulerOutput(SchedulerOutput):
    """`prev_sample`, and `pred_original_sample`: the clean sample as estimated at this level."""

    __slots__ = ()
    fields = ("prev_sample", "pred_original_sample")
    pred_original_sample: Any


class EulerDiscreteSchedulerOutput(SchedulerOutput):
    """`prev_sample`, and `pred_original_sample`: the clean sample as estimated at this level."""

    __slots__ = ()
    fields = ("prev_sample", "pred_original_sample")
    pred_original_sample: Any


class EulerAncestralDiscreteSchedulerOutput(SchedulerOutput):
    """`prev_sample`, and `pred_original_sample`: the clean sample as estimated at this level."""

    __slots__ = ()
    fields = ("prev_sample", "pred_original_sample")
    pred_original_sample: Any


class FlowMatchEulerDiscreteSchedulerOutput(SchedulerOutput):
    """`prev_sample`: the sample at the next level, or with each token at its next."""

    __slots__ = ()


class HeunDiscreteSchedulerOutput(SchedulerOutput):
    """`prev_sample`, and `pred_original_sample`: the clean sample as estimated at the level of the model call."""

    __slots__ = ()
    fields = ("prev_sample", "pred_original_sample")
    pred_original_sample: Any


class LMSDiscreteSchedulerOutput(SchedulerOutput):
    """`prev_sample`, and `pred_original_sample`: the clean sample as estimated at this level."""

    __slots__ = ()
    fields = ("prev_sample", "pred_original_sample")
    pred_original_sample: Any


class RePaintSchedulerOutput(SchedulerOutput):
    """`prev_sample`, and `pred_original_sample`: the clean sample as estimated at this level."""

    __slots__ = ()
    fields = ("prev_sample", "pred_original_sample")
    pred_original_sample: Any


class VQDiffusionSchedulerOutput(SchedulerOutput):
    """`prev_sample`: the tokens of the timestep before."""

    __slots__ = ()


class KarrasVeOutput(SchedulerOutput):
    """`prev_sample`; `derivative`, ε at the start of the step; and `pred_original_sample`, the clean sample as estimated."""

    __slots__ = ()
    fields = ("prev_sample", "derivative", "pred_original_sample")
    derivative: Any
    pred_original_sample: Any


class SdeVeOutput(SchedulerOutput):
    """`prev_sample`, and `prev_sample_mean`: the same without the noise that was added."""

    __slots__ = ()
    fields = ("prev_sample", "prev_sample_mean")
    prev_sample_mean: Any
