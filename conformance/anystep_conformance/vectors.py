"""Golden vectors: each subject's plan and one short run of it as JSON, so that a port to any language can test itself.

The plan is the host's float64 table. What follows from it is computed in exact rational arithmetic (`exact`), each number
rounded to float64 once, and checked against the step on NumPy before it is written. Numbers are the shortest decimals that
read back to the same float64.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from anystep import BetaSchedule, Plan, State, __version__, init
from anystep._files import write_atomically

from .compare import BOUNDS, compare
from .exact import exact_row
from .subjects import scale_of
from .walk import Planned, call, target

__all__ = ["check_vector", "make_vector", "read_vectors", "schema", "slug", "write_vectors"]

FORMAT = "anystep golden 1"
COMMAND = "python -m anystep_conformance golden --out DIRECTORY"
SHAPE = (2, 3)
STEPS = 4


def slug(name: str) -> str:
    """A file name of a subject's name.

    Examples
    --------
    >>> slug("DPM-Solver++"), slug("Euler ancestral, eta=0.5")
    ('dpm_solverpp', 'euler_ancestral_eta_0_5')
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("+", "p")).strip("_")


def make_vector(subject: Planned, steps: int = STEPS) -> dict[str, Any]:
    """The vector of a subject, checked against the step on NumPy.

    Raises
    ------
    AssertionError
        If the step gives something else than exact arithmetic does.
    """
    plan = subject.plan(steps)
    rng = np.random.default_rng(sum(map(ord, subject.name)))
    x = start = rng.normal(size=SHAPE) * float(np.hypot(plan.alpha[0], plan.sigma[0]))
    memories: tuple[Any, ...] = (x,) * plan.memories
    calls: list[dict[str, Any]] = []
    for i in range(len(plan)):
        output = target(plan, i, x)
        noises = (
            rng.normal(size=(plan.noises, *SHAPE)) if plan.stochastic[i] else np.zeros((plan.noises, *SHAPE))
        )
        made = _exact(plan, i, x, output, memories, noises)
        _agree(plan, i, x, output, memories, noises, made)
        names = {"model_output": output, "model_input": made[0], "estimate": made[1], "sample": made[2]}
        calls.append({name: array.tolist() for name, array in names.items()})
        calls[-1] |= {"noises": noises.tolist(), "memories": [array.tolist() for array in made[3:]]}
        x, memories = made[2], tuple(made[3:])
    parts = ("sampler", "schedule", "spacing", "predicts", "threshold", "karras")
    return {
        "format": FORMAT,
        "name": subject.name,
        "made_by": {"anystep": __version__, "numpy": np.__version__, "command": COMMAND},
        "steps": steps,
        "parts": {part: _plain(getattr(subject, part)) for part in parts if hasattr(subject, part)},
        "plan": json.loads(plan.to_json()),
        "memories": plan.memories,
        "noises": plan.noises,
        "trajectory": {"start": start.tolist(), "calls": calls},
    }


def _exact(plan: Plan, i: int, x: Any, m: Any, memories: Any, noises: Any) -> list[Any]:
    """Model input, estimate, next sample and next memories of all samples."""
    rows = [
        exact_row(plan, i, x[b], m[b], [v[b] for v in memories], [z[b] for z in noises])
        for b in range(len(x))
    ]
    columns = [[row.model_input for row in rows], [row.estimate for row in rows]]
    columns += [[row.outputs[k] for row in rows] for k in range(1 + plan.memories)]
    return [np.array([[float(value) for value in row] for row in column]) for column in columns]


def _agree(plan: Plan, i: int, x: Any, m: Any, memories: Any, noises: Any, made: list[Any]) -> None:
    found = call(plan, i, State(x, tuple(memories)), m, tuple(noises) if plan.noises else None)
    estimate = (
        np.abs(plan.estimate[i, 0] * x) + np.abs(plan.estimate[i, 1] * m) + (plan.threshold is not None)
    )
    scales = scale_of(plan, i, [x, m, *memories, *noises], folded=False)
    scales = [
        np.abs(plan.input_scale[i] * x),
        estimate,
        *(scale + (plan.threshold is not None) for scale in scales),
    ]
    for one, other, scale in zip(found, made, scales, strict=True):
        compare(one, other, scale=scale, ulp=BOUNDS["reference"].ulp, name=f"the step at call {i}")


def _plain(part: Any) -> Any:
    """A part as JSON: dataclasses by kind and fields, long tables by their length, ends and sum, infinity as a string."""
    if isinstance(part, BetaSchedule):
        for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            if np.array_equal(BetaSchedule.named(name).betas, part.betas):
                return {"kind": "BetaSchedule", "named": name, "length": len(part.betas)}
    if is_dataclass(part) and not isinstance(part, type):
        found = {field.name: _plain(getattr(part, field.name)) for field in fields(part)}
        return {"kind": type(part).__name__, **found}
    if isinstance(part, np.ndarray):
        if part.size <= 16:
            return part.tolist()
        return {
            "length": part.size,
            "first": float(part[0]),
            "last": float(part[-1]),
            "sum": math.fsum(part.tolist()),
        }
    if isinstance(part, float) and not math.isfinite(part):
        return repr(part)
    if isinstance(part, tuple | list):
        return [_plain(one) for one in part]  # pyright: ignore[reportUnknownVariableType]
    return (
        part
        if part is None or isinstance(part, bool | int | float | str)
        else getattr(part, "name", repr(part))
    )


def write_vectors(directory: Path, subjects: Iterable[Planned]) -> list[Path]:
    """A file for each subject."""
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for subject in subjects:
        path = directory / f"{slug(subject.name)}.json"
        write_atomically(path, _text(make_vector(subject)).encode())
        written.append(path)
    return written


def _text(vector: dict[str, Any]) -> str:
    """Indented, with every innermost list on one line."""
    return (
        re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(vector, indent=1))
        + "\n"
    )


def read_vectors() -> dict[str, dict[str, Any]]:
    """The vectors in the package, by file name."""
    folder = files("anystep_conformance").joinpath("golden")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".json"))
    return {name: json.loads(folder.joinpath(name).read_text()) for name in names if name != "schema.json"}


def schema() -> dict[str, Any]:
    """The JSON schema of a vector."""
    return json.loads(files("anystep_conformance").joinpath("golden", "schema.json").read_text())


def check_vector(vector: dict[str, Any], subject: Planned | None = None) -> None:
    """Hold the step, and if a subject is given its plan, to a vector.

    Raises
    ------
    AssertionError
        If a coefficient is more than 1e-12 of its row away from the vector's, or a step more than the bound "reference".
    """
    plan = Plan.from_json(json.dumps(vector["plan"]))
    if subject is not None:
        ours = subject.plan(vector["steps"])
        for name in ("timesteps", "alpha", "sigma", "input_scale", "estimate", "update"):
            found, wanted = getattr(ours, name), getattr(plan, name)
            # libm differs between platforms in the last digits, and differences of tables magnify that.
            size = np.abs(wanted).max(axis=-1, keepdims=True)
            if found.shape != wanted.shape or (np.abs(found - wanted) > 1e-12 * size).any():
                raise AssertionError(
                    f"{vector['name']}: the plan's {name} is not the vector's; write new vectors if it should not be."
                )
        if ours.threshold != plan.threshold:
            raise AssertionError(
                f"{vector['name']}: the plan bounds x̂₀ by {ours.threshold}, the vector by {plan.threshold}."
            )
    state = init(plan, np.array(vector["trajectory"]["start"]))
    for i, told in enumerate(vector["trajectory"]["calls"]):
        names = ("model_input", "estimate", "sample")
        made = [np.array(told[name]) for name in names] + [np.array(array) for array in told["memories"]]
        noises = [np.array(array) for array in told["noises"]]
        _agree(plan, i, state.x, np.array(told["model_output"]), state.memory, noises, made)
        state = State(made[2], tuple(made[3:]))
