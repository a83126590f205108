"""What is checked once for a library, not for each subject: its adapter, and its random numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from anystep import DDPM, BetaSchedule, Leading, Plan, draw
from anystep_backends import Backend

from .case import Case, Violation
from .compare import compare
from .libraries import Library

__all__ = ["ADAPTER", "DRAWS", "check_adapter", "check_draws"]


@dataclass(frozen=True)
class _About:
    """A row of the matrix that is about the library alone."""

    name: str

    def plan(self, steps: int = 2) -> Plan:
        """Any plan: none is run."""
        return DDPM().plan(Leading().levels(BetaSchedule.named("linear"), steps), "epsilon")


ADAPTER = _About("(the adapter itself)")
DRAWS = _About("(random numbers)")

_VALUES = np.array([[0.0, 1.0, -2.5], [3.0, 0.75, 2.0]])


def check_adapter(case: Case) -> tuple[None, str]:
    """The members of the protocol, and exchange with NumPy."""
    adapter = case.library.adapter
    missing = [name for name in vars(Backend) if not name.startswith("_") and not hasattr(adapter, name)]
    if missing:
        raise Violation("smoke", f"the adapter has no {', '.join(missing)}: see anystep_backends.Backend.")
    x = case.library.array(_VALUES, case.dtype)
    device = adapter.device(case.library.device)
    made = adapter.asarray(_VALUES, dtype=case.dtype, device=device)
    compare(made, _VALUES, like=x, name="asarray")
    back = adapter.to_numpy(made)
    if back.shape != _VALUES.shape or (back != _VALUES).any():
        raise Violation("values", "to_numpy does not give back what asarray was given.")
    back[...] = 7
    if (adapter.to_numpy(made) == 7).any():
        raise Violation("purity", "to_numpy gives the array's own memory: expected a copy.")
    given = _VALUES.astype(np.float32)
    made = adapter.asarray(given, device=device)
    given[...] = 7
    if (adapter.to_numpy(made) == 7).any():
        raise Violation("purity", "asarray keeps the memory that it was given: expected a copy.")
    for wrong in ("nowhere:0", 99):
        try:
            adapter.device(wrong)
        except ValueError:
            continue
        raise Violation("device", f"device({wrong!r}) names no device: expected ValueError.")
    return None, ""


def check_draws(case: Case) -> tuple[None, str]:
    """NumPy's generators give NumPy's draws; the library's own are reproducible; a list gives each sample its own."""
    entry, shape = case.library, (3, 2, 5)
    x = entry.array(np.zeros(shape), case.dtype)
    wide = np.float64 if case.dtype == "float64" else np.float32
    expected = np.random.default_rng(3).standard_normal(shape, dtype=wide)
    adapter = entry.adapter

    def drawn(generator: Any, step: int = 0, like: Any = x) -> Any:
        if adapter is None:
            return draw(like, generator, step)
        return adapter.normal(tuple(like.shape), generator=generator, like=like, index=step)

    _same(drawn(np.random.default_rng(3)), expected, case, "the draw of a NumPy generator")
    if adapter is None:
        return None, ""
    each = np.concatenate(
        [np.random.default_rng(s).standard_normal((1, 2, 5), dtype=wide) for s in (7, 8, 9)]
    )
    _same(
        drawn([np.random.default_rng(s) for s in (7, 8, 9)]),
        each,
        case,
        "the draw of a list of NumPy generators",
    )

    def own(seed: int) -> Any:
        return adapter.generator(seed, entry.device)

    one, again, other = (entry.read(drawn(own(seed), 2)) for seed in (5, 5, 6))
    if one.tobytes() != again.tobytes():
        raise Violation("noise", "one seed of the library's own generator gave two draws.")
    if one.tobytes() == other.tobytes():
        raise Violation("noise", "two seeds of the library's own generator gave one draw.")
    generator = own(5)
    first, second = (entry.read(drawn(generator, step)) for step in range(2))
    if first.tobytes() == second.tobytes():
        raise Violation("noise", "a generator gave the same noise at two steps.")
    rows = entry.read(drawn([own(seed) for seed in (7, 8, 9)], 2))
    for row, seed in zip(rows, (7, 8, 9), strict=True):
        alone = entry.read(drawn(own(seed), 2, x[:1, ...]))
        if row.tobytes() != alone.tobytes():
            raise Violation("noise", "in a list of generators a sample did not get the draw of its own one.")
    return None, ""


def _same(found: Any, expected: Any, case: Case, name: str) -> None:
    """Namespace, dtype, shape, device as for any array; other values are another order of the noise."""
    entry: Library = case.library
    wanted = entry.array(expected, case.dtype)
    compare(found, wanted, ulp=np.inf, name=name)
    if entry.read(found).tobytes() != entry.read(wanted).tobytes():
        raise Violation("noise", f"{name} is not NumPy's: expected the same values in the same order.")
