"""A tiny array library that has the array API standard's names and nothing else, an adapter for it, and faults to plant in both.

`library()` makes a new one, with types of its own; ``namespace`` and ``adapter`` are a sound one.
"""

from types import ModuleType, SimpleNamespace

import numpy as np


def library(fault=None):
    """The namespace of a new array library, with one fault."""

    class Array:
        def __init__(self, values, device="toy:0"):
            self._values, self.device = np.asarray(values), device

        dtype = property(lambda self: self._values.dtype)
        shape = property(lambda self: self._values.shape)
        ndim = property(lambda self: self._values.ndim)
        size = property(lambda self: self._values.size)

        def __array_namespace__(self, api_version=None):
            return xp

        def __array__(self, dtype=None, copy=None):
            return np.array(self._values, dtype=dtype)

        def __getitem__(self, key):
            return Array(self._values[key], self.device)

        def __setitem__(self, key, value):
            self._values[key] = value

        def __bool__(self):
            return bool(self._values)

        def __float__(self):
            return float(self._values)

        def __neg__(self):
            return Array(-self._values, self.device)

        def _with(self, other, operation):
            if fault == "crashes":
                raise RuntimeError("the toy is broken")
            if fault == "reads" and self.size and float(self[(0,) * self.ndim]) > 1e300:
                return self
            values = operation(self._values, other._values if isinstance(other, Array) else other)
            if isinstance(other, Array):
                assert fault == "device" or other.device == self.device, "arrays on two devices"
            return Array(values, "toy:1" if fault == "device" else self.device)

        def __add__(self, other):
            if fault == "mutates":
                self._values += other._values
                return self
            found = self._with(other, np.add)
            if fault == "dtype":
                found._values = found._values.astype(np.float64)
            if fault == "shape":
                found._values = found._values[None]
            if fault == "ulp":
                flat = found._values.reshape(-1)
                flat[-1:] = np.nextafter(flat[-1:], found.dtype.type(np.inf))
            if fault == "namespace":
                return found._values
            return found

        def __sub__(self, other):
            return self._with(other, np.subtract)

        def __mul__(self, other):
            if fault == "aliases" and isinstance(other, float) and other == 1.0:
                return self
            return self._with(other, np.multiply)

        def __truediv__(self, other):
            return self._with(other, np.divide)

        __radd__, __rmul__ = __add__, __mul__

    def lifted(function):
        def call(*arguments, **options):
            device = next((a.device for a in arguments if isinstance(a, Array)), "toy:0")
            plain = [a._values if isinstance(a, Array) else a for a in arguments]
            return Array(function(*plain, **options), device)

        return call

    xp = ModuleType("toys")
    for name in (
        "abs",
        "clip",
        "maximum",
        "minimum",
        "reshape",
        "sort",
        "sum",
        "take",
        "broadcast_to",
        "where",
        "sqrt",
    ):
        setattr(xp, name, lifted(getattr(np, name)))
    xp.astype = lambda x, dtype, copy=True: Array(x._values.astype(dtype, copy=copy), x.device)
    xp.asarray = lambda values, dtype=None, device=None: Array(
        np.array(values, dtype=dtype), device or "toy:0"
    )
    xp.isdtype = lambda dtype, kind: np.isdtype(dtype, kind)
    xp.concat = lambda arrays, axis=0: Array(
        np.concatenate([a._values for a in arrays], axis=axis), arrays[0].device
    )
    for name in ("float32", "float64", "int32", "int64", "bool"):
        setattr(xp, name, np.dtype(name))
    xp.Array = Array
    return xp


class Adapter:
    """What `anystep_backends.Backend` asks for, with one fault."""

    name, version, transforms = "toys", "1.0", {}

    def __init__(self, xp, fault=None):
        self.xp, self.fault = xp, fault

    def devices(self):
        return ("toy:0",)

    def device(self, name=None):
        if name in (None, "toy:0") or self.fault == "any device":
            return "toy:0"
        raise ValueError(f"device={name!r}: toys has 'toy:0'; pass it, or None.")

    def asarray(self, values, *, dtype=None, device=None):
        if dtype in ("float16", "bfloat16"):
            raise ValueError(f"dtype={dtype!r}: toys has none.")
        self.device(device)
        if self.fault == "aliases":
            return self.xp.Array(np.asarray(values, dtype=dtype))
        return self.xp.asarray(values, dtype=dtype)

    def to_numpy(self, x):
        return x._values if self.fault == "aliases" else np.array(x._values)

    def generator(self, seed, device=None):
        return SimpleNamespace(
            native=np.random.default_rng(0 if self.fault == "forgets the seed" else seed), first=seed
        )

    def _draw(self, law, shape, generator, like):
        if isinstance(generator, list):
            rows = [self._draw(law, (1, *shape[1:]), one, like) for one in generator]
            return self.xp.concat(rows[::-1] if self.fault == "order" else rows)
        native = generator if isinstance(generator, np.random.Generator) else generator.native
        if self.fault == "stands still" and not isinstance(generator, np.random.Generator):
            native = np.random.default_rng(generator.first)
        return self.xp.asarray(getattr(native, law)(shape, dtype=like.dtype))

    def normal(self, shape, *, generator, like, index=0):
        return self._draw("standard_normal", shape, generator, like)

    def position(self, table, entry):
        return None


class Whole(Adapter):
    """A complete one."""

    def uniform(self, shape, *, generator, like, index=0):
        return self._draw("random", shape, generator, like)


def adapter_with(fault):
    return (Adapter if fault == "incomplete" else Whole)(library(), fault)


namespace = library()
adapter = Whole(library())
