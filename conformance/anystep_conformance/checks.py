"""The checks on one case, in the order of `anystep_conformance.case.CHECKS`."""

import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from anystep import DynamicThreshold, Plan, State, sample
from anystep._array import backend_of
from anystep._update import reproducible

from .adapters import ADAPTER, DRAWS, check_adapter, check_draws
from .case import Case, Result, Violation
from .compare import BOUNDS, Difference, compare
from .exact import exact_row
from .gaps import gap_of
from .subjects import scale_of
from .transforms import TRANSFORMED
from .walk import Inputs, call, reference, target, walk

__all__ = ["run"]


def run(case: Case) -> Result:
    """All checks of a case; never raises."""
    began = time.perf_counter()
    measured: dict[str, Any] = {"distance": None}
    failures: list[tuple[str, str]] = []
    try:
        path = nullcontext() if case.mode == "fused" else reproducible()
        with case.library.scope(case.dtype), path, _quiet():
            for step in _steps(case):
                try:
                    distance, unit = step(case)
                    if distance is not None:
                        measured = {"distance": distance, "unit": unit}
                except Difference as difference:
                    failures.append((difference.aspect, str(difference)))
                    if difference.aspect != "values":
                        break
                    measured = {"distance": difference.distance, "unit": _unit(case)}
                except Violation as violation:
                    failures.append((violation.check, str(violation)))
    except Exception as error:  # whatever the library or the subject raises is the finding
        failures.append(("smoke", f"{type(error).__name__}: {error}"))
    outcome, check, reason = _verdict(case, failures, measured["distance"])
    names = (case.subject.name, case.library.name, case.dtype, case.mode)
    seconds = round(time.perf_counter() - began, 4)
    return Result(*names, outcome, check=check, reason=reason, seconds=seconds, **measured)


def _verdict(case: Case, failures: list[tuple[str, str]], distance: float | None) -> tuple[str, str, str]:
    """Outcome, failed check and reason; a gap must be there, be of the stated size, and be the only thing wrong."""
    gap = gap_of(case)
    if gap is None:
        return ("failed", *failures[0]) if failures else ("passed", "", "")
    if not failures:
        return "failed", "gap", f"the expected gap is gone: take it out of gaps.py ({gap.reason})."
    if [check for check, _ in failures] == ["values"] and distance is not None and distance <= gap.ulp:
        return "gap", "values", gap.reason
    return ("failed", *next((f for f in failures if f[0] != "values"), failures[0]))


@contextmanager
def _quiet() -> Generator[None]:
    """Compilers warn of what they do, not of what is wrong: Dynamo of functools.lru_cache, JAX of 64-bit numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _steps(case: Case) -> list[Callable[[Case], tuple[float | None, str]]]:
    if case.subject is ADAPTER:
        return [check_adapter]
    if case.subject is DRAWS:
        return [check_draws]
    if case.mode == "fused":
        return [TRANSFORMED[case.mode], _purity, _exact, _laziness]
    if case.mode != "eager":
        return [TRANSFORMED[case.mode]]
    return [_values, _purity, _laziness, *([_noise] if case.plan.noises else [])]


def _unit(case: Case) -> str:
    return "ulp" if case.mode in ("eager", "index", "vmap") else "eps"


def _values(case: Case) -> tuple[float, str]:
    """The free-running loop, bit for bit the one on NumPy, and every call right by exact arithmetic."""
    plan, worst, found = case.plan, 0.0, None
    pairs = zip(walk(plan, case.library, case.dtype), reference(plan, case.dtype), strict=True)
    for i, ((given, made), (_, expected)) in enumerate(pairs):
        names = ("model input", "estimate", "sample", *(f"memory {k + 1}" for k in range(plan.memories)))
        for name, one, other in zip(names, made, expected, strict=True):
            options: dict[str, Any] = {
                "like": given.state.x,
                "ulp": BOUNDS["eager"].ulp,
                "signed_zeros": True,
            }
            try:
                worst = max(worst, compare(one, other, name=f"{name} of call {i}", **options))
            except Difference as difference:
                if difference.aspect != "values":
                    raise
                found = found or difference  # the first alone: what follows starts from other values
        _exact_call(case, i, given, made)
        if found is not None:
            raise found
    return worst, "ulp"


def _exact(case: Case) -> tuple[None, str]:
    """Every call right by exact arithmetic."""
    for i, (given, made) in enumerate(walk(case.plan, case.library, case.dtype)):
        _exact_call(case, i, given, made)
    return None, ""


def _exact_call(case: Case, i: int, given: Inputs, made: tuple[Any, ...]) -> None:
    """One sample of a call against exact rational arithmetic on the plan's unfolded row."""
    plan, read = case.plan, case.library.read
    arrays = [read(array).astype(np.float64) for array in given.arrays]
    x, m, *rest = [array[-1].ravel().tolist() for array in arrays]
    try:
        wanted = exact_row(plan, i, x, m, rest[: plan.memories], rest[plan.memories :])
    except NotImplementedError:
        return
    scales = scale_of(plan, i, arrays, folded=False)
    estimate_scale = np.abs(plan.estimate[i, 0] * arrays[0]) + np.abs(plan.estimate[i, 1] * arrays[1])
    if isinstance(plan.threshold, DynamicThreshold):  # quotients of values up to 1
        estimate_scale = estimate_scale + 1
        scales = scales + np.abs(plan.update[i, :, 2]).reshape(-1, *(1,) * arrays[0].ndim)
    expected = [wanted.model_input, wanted.estimate, *wanted.outputs]
    scales = [np.abs(plan.input_scale[i] * arrays[0]), estimate_scale, *scales]
    for output, (one, exact, scale) in enumerate(zip(made, expected, scales, strict=True)):
        values = np.asarray(list(map(float, exact)))
        one = read(one)[-1].ravel()
        name = f"output {output} of call {i} against exact arithmetic"
        compare(one, values, like=one, scale=scale[-1].ravel(), ulp=BOUNDS["reference"].ulp, name=name)


def _fresh(case: Case, i: int, *, sealed: bool) -> Inputs:
    """The inputs of call i of the reference, in the library."""
    make = case.library.array if sealed else lambda values, dtype: case.library.make(values)
    (state, output, noise), _ = reference(case.plan, case.dtype)[i]
    state = State(make(state.x, case.dtype), tuple(make(array, case.dtype) for array in state.memory))
    noise = None if noise is None else tuple(make(array, case.dtype) for array in noise)
    return Inputs(state, make(output, case.dtype), noise)


def _purity(case: Case) -> tuple[None, str]:
    """Inputs keep their values, and writing to what came out does not reach them."""
    plan, read = case.plan, case.library.read
    for i in sorted({0, len(plan) // 2, len(plan) - 1}):
        for sealed in (True, False):
            given = _fresh(case, i, sealed=sealed)
            kept = [read(array) for array in given.arrays]
            _, estimate, *made = call(plan, i, *given)
            names = ("the sample", "the model's output", *(f"memory {k + 1}" for k in range(plan.memories)))
            names += tuple(f"noise {r + 1}" for r in range(plan.noises))

            def unchanged(
                what: str, given: Inputs = given, kept: Any = kept, names: Any = names, i: int = i
            ) -> None:
                for name, array, before in zip(names, given.arrays, kept, strict=True):
                    if read(array).tobytes() != before.tobytes():
                        raise Violation("purity", f"{name} that call {i} was given {what}.")

            unchanged("was written to")
            moved = [_moves(plan, i, output) for output in range(1 + plan.memories)]
            for array, moves in zip([estimate, *made], [False, *moved], strict=True):
                if not moves and not sealed and _overwrite(array):
                    unchanged("shares memory with a result that is new")
    return None, ""


def _moves(plan: Plan, i: int, output: int) -> bool:
    """Whether a memory only passes an input on, and so may be it."""
    row = plan.folded[i, output]
    return output > 0 and np.count_nonzero(row) == 1 and row.sum() == 1


def _overwrite(array: Any) -> bool:
    try:
        array[...] = 7
    except Exception:  # immutable, each library in its own words
        return False
    return True


def _laziness(case: Case) -> tuple[None, str]:
    """No value is read inside a step, with an int row and with an array of rows."""
    if case.library.lazily is None:
        return None, ""
    i = len(case.plan) // 2
    for row in (i, case.library.index(i), case.library.index([i] * len(target(case.plan, i, np.zeros(2))))):
        try:
            case.library.lazily(lambda *given: call(case.plan, *given), row, *_fresh(case, i, sealed=True))
        except Exception as error:
            raise Violation("laziness", f"call {i} read a value: {type(error).__name__}: {error}") from error
    return None, ""


def _noise(case: Case) -> tuple[None, str]:
    """One seed of the library's own generator gives one sample, another seed another."""
    adapter = case.library.adapter
    if adapter is None:
        return None, ""
    plan, entry = case.plan, case.library
    (state, _, _), _ = reference(plan, case.dtype)[0]
    registered = backend_of(entry.array(state.x, case.dtype)) is adapter

    def drawn(seed: int) -> bytes:
        calls = iter(range(len(plan)))

        def model(x: Any, t: float) -> Any:
            return entry.array(target(plan, next(calls), entry.read(x)), case.dtype)

        x = entry.array(state.x, case.dtype)
        own = adapter.generator(seed, entry.device)

        def noise(i: int) -> Any:
            rows = range(i * plan.noises, (i + 1) * plan.noises)
            return tuple(adapter.normal(tuple(x.shape), generator=own, like=x, index=row) for row in rows)

        options: dict[str, Any] = {"generator": own} if registered else {"noise": noise}
        return entry.read(sample(model, plan, x, **options)).tobytes()

    one, again, other = drawn(5), drawn(5), drawn(6)
    if one != again:
        raise Violation("noise", "the library's own generator gave two samples for one seed.")
    if one == other:
        raise Violation("noise", "two seeds of the library's own generator gave one sample.")
    return None, ""
