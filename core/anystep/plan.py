"""A scheduler as a table of numbers: what `update` reads at each model call, made once on the host in
float64.

Row i of a plan describes model call i. With x the sample, m the model's output, x̂₀ the estimate of the clean
sample, memories carried from earlier calls and fresh noises z, every continuous scheduler's step is

    next x, next memory_1 .. memory_K  =  update[i] @ (x, m, x̂₀, memory_1 .. memory_K, z_1 .. z_R)

where x̂₀ = estimate[i] @ (x, m). All that tells one scheduler from another is in these coefficients.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from anystep._array import Array, Float64, place
from anystep._combination import Combination, Row
from anystep.levels import Levels
from anystep.predictions import Prediction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anystep.thresholding import Threshold

__all__ = ["Plan", "compose"]

X, MODEL_OUTPUT, X0, FIRST_MEMORY = 0, 1, 2, 3
"""Columns of ``update``."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Immutable float64 tables of N rows, one a model call, with K memories and R noises.

    Parameters
    ----------
    timesteps
        What the model is told at each call, shape (N,).
    alpha, sigma
        Level of each call and, last, the level the sample ends at, shape (N + 1,).
    input_scale
        Factor on the sample before the model, shape (N,).
    estimate
        (a, b) of x̂₀ = a x + b m, shape (N, 2).
    update
        Coefficients, shape (N, 1 + K, 3 + K + R); see the module.
    threshold
        Bound on x̂₀ between estimate and update, or None. Without one, x̂₀ folds into the columns of x and m.

    Raises
    ------
    ValueError
        If shapes do not fit each other or a number is not finite.

    Notes
    -----
    Equal plans compare equal with ``==`` and hash alike. Arrays are read-only, so a plan may be shared
    between threads.
    """

    timesteps: Float64
    alpha: Float64
    sigma: Float64
    input_scale: Float64
    estimate: Float64
    update: Float64
    threshold: "Threshold | None" = None
    memories: int = field(init=False, repr=False)
    """Number K of arrays carried from call to call beside the sample."""
    noises: int = field(init=False, repr=False)
    """Number R of fresh standard-normal arrays that a call consumes."""
    fused: dict[tuple[int, type, Any], Any] = field(default_factory=dict, init=False, repr=False)
    """What backends have made of calls, by (call, type, dtype), filled by `anystep.update`; below 0, what is prepared."""

    def __post_init__(self) -> None:
        tables: dict[str, Float64] = {}
        for name in _TABLES:
            given = np.asarray(getattr(self, name))
            if given.dtype.kind not in "fiu":
                raise ValueError(f"{name} has dtype {given.dtype}: expected real numbers.")
            table = tables[name] = given.astype(np.float64)
            table.setflags(write=False)
            object.__setattr__(self, name, table)
        if not np.isfinite(np.concatenate([*tables.values()], axis=None)).all():
            _refuse_infinite(tables)
        count, shape = self.timesteps.size, self.update.shape
        expected = (count,), (count + 1,), (count + 1,), (count,), (count, 2), (count, *shape[1:])
        for (name, table), wanted in zip(tables.items(), expected, strict=True):
            if table.shape != wanted or count < 1:
                raise ValueError(f"{name} has shape {table.shape}: expected {wanted} for {count} rows.")
        if len(shape) != 3 or shape[1] < 1 or shape[2] < 2 + shape[1]:
            raise ValueError(
                f"update has shape {shape}: expected (N, 1 + K, 3 + K + R) for K memories and R noises."
            )
        object.__setattr__(self, "memories", shape[1] - 1)
        object.__setattr__(self, "noises", shape[2] - FIRST_MEMORY - self.memories)

    def __reduce__(self) -> tuple[Any, ...]:
        # Made anew, because NumPy's own copies and pickles of read-only arrays are writable.
        return Plan, (*(getattr(self, name) for name in _TABLES), self.threshold)

    def __len__(self) -> int:
        """Number of model calls N."""
        return len(self.timesteps)

    @cached_property
    def stochastic(self) -> "NDArray[np.bool_]":
        """Whether each call uses its noise, shape (N,)."""
        return (self.update[:, :, FIRST_MEMORY + self.memories :] != 0).any(axis=(1, 2))

    @cached_property
    def folded(self) -> Float64:
        """``update`` as applied.

        Without a threshold, x̂₀'s column is folded into those of x and m and left 0.
        """
        table = self.update.copy()
        if self.threshold is None:
            table[:, :, :2] += table[:, :, X0, None] * self.estimate[:, None, :]
            table[:, :, X0] = 0.0
        table.flags.writeable = False
        return table

    @cached_property
    def combinations(self) -> tuple[tuple[int | None, Combination], ...]:
        """For each output of a call.

        The column it passes on unchanged in every row, or None; and how to form it.
        """
        # The next sample is always a new array, so that a caller may write to it.
        tables = [self.folded[:, row] for row in range(1 + self.memories)]
        return tuple(
            (_moved(table) if row else None, Combination(table, self.memories))
            for row, table in enumerate(tables)
        )

    @cached_property
    def moves(self) -> tuple[tuple[int | None, ...], ...]:
        """For each call, the column that each output passes on unchanged, or None; never for the sample."""
        return tuple((None, *(_moved(row[None]) for row in rows[1:])) for rows in self.folded)

    def outputs(self, i: int) -> tuple[int | Row, ...]:
        """How to form each output of call ``i`` from the arrays (x, m, memories, noises), which have no x̂₀ among them.

        The position of the array that is passed on unchanged, or the row of a combination whose columns are such
        positions. Only where there is no threshold.
        """

        def position(column: int) -> int:
            return column - (column > X0)

        found: list[int | Row] = []
        for source, (_, combination) in zip(self.moves[i], self.combinations, strict=True):
            row = combination.row(i)
            terms, late = (
                tuple([(position(c), value) for c, value in part]) for part in (row.terms, row.late)
            )
            row = row._replace(base=None if row.base is None else position(row.base), terms=terms, late=late)
            found.append(row if source is None else position(source))
        return tuple(found)

    @cached_property
    def estimate_combination(self) -> Combination:
        """How to form x̂₀."""
        return Combination(self.estimate)

    @cached_property
    def input_combination(self) -> Combination:
        """How to form the model's input."""
        return Combination(self.input_scale[:, None])

    def prepare(self, x: Array) -> None:
        """Make now what the first call on arrays like ``x`` would make, so that a compiler that traces a call meets finished
        tables.
        """
        where = place(x)
        key = -1, type(x), (x.dtype, str(where))
        if key in self.fused:
            return
        _ = self.moves, self.identity_input, self.stochastic
        made = [combination for _, combination in self.combinations]
        for combination in (*made, self.estimate_combination, self.input_combination):
            if where is not None:  # JAX keeps no table
                combination.table(x)
        self.fused[key] = None

    @cached_property
    def identity_input(self) -> bool:
        """Whether the model takes the sample as it is at every call."""
        return bool((self.input_scale == 1.0).all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return (*(getattr(self, name).tobytes() for name in _TABLES), self.update.shape, self.threshold)

    @classmethod
    def concatenate(cls, plans: Sequence["Plan"]) -> "Plan":
        """One plan with the rows of several, so that a batch may hold samples of different methods.

        Row i of ``plans[p]`` becomes row i + Σ_{q < p} len(plans[q]). Every sample is then stepped at a row of its own; a
        method with fewer memories carries the others along unread.

        Parameters
        ----------
        plans
            At least one; all with the same threshold.

        Raises
        ------
        ValueError
            If there is none, or thresholds differ.

        Notes
        -----
        ``alpha`` and ``sigma`` keep the level of each call, and of the final levels that of the last plan only.

        Examples
        --------
        >>> from anystep import DDIM, LMS, BetaSchedule, Leading
        >>> levels = Leading().levels(BetaSchedule.named("linear"), steps=3)
        >>> both = Plan.concatenate([DDIM().plan(levels, "epsilon"), LMS().plan(levels, "epsilon")])
        >>> len(both), both.memories  # rows 0 to 2 are DDIM's, rows 3 to 5 those of LMS
        (6, 3)
        """
        if not plans:
            raise ValueError("plans is empty: expected at least one plan.")
        if any(plan.threshold != plans[0].threshold for plan in plans):
            raise ValueError(
                f"plans have thresholds {[plan.threshold for plan in plans]}: expected the same for all; "
                "step samples with different thresholds in separate batches."
            )
        memories, noises = max(plan.memories for plan in plans), max(plan.noises for plan in plans)
        updates: list[Float64] = []
        for plan in plans:
            known, fresh = FIRST_MEMORY + plan.memories, FIRST_MEMORY + memories
            table = np.zeros((len(plan), 1 + memories, fresh + noises))
            table[:, : 1 + plan.memories, :known] = plan.update[:, :, :known]
            table[:, : 1 + plan.memories, fresh : fresh + plan.noises] = plan.update[:, :, known:]
            for k in range(plan.memories, memories):
                table[:, 1 + k, FIRST_MEMORY + k] = 1.0
            updates.append(table)

        def ended(tables: list[Float64]) -> Float64:
            return np.concatenate([*(table[:-1] for table in tables), tables[-1][-1:]])

        return cls(
            timesteps=np.concatenate([plan.timesteps for plan in plans]),
            alpha=ended([plan.alpha for plan in plans]),
            sigma=ended([plan.sigma for plan in plans]),
            input_scale=np.concatenate([plan.input_scale for plan in plans]),
            estimate=np.concatenate([plan.estimate for plan in plans]),
            update=np.concatenate(updates),
            threshold=plans[0].threshold,
        )

    def to_json(self) -> str:
        """The plan as JSON text; float64 values survive exactly.

        Examples
        --------
        >>> from anystep import DDIM, BetaSchedule, Leading
        >>> plan = DDIM().plan(Leading().levels(BetaSchedule.named("linear"), steps=3), "epsilon")
        >>> Plan.from_json(plan.to_json()) == plan
        True
        """
        from anystep._plan_files import to_text  # here and below, because most runs read and write no plan

        return to_text(self._tables, self.threshold)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Plan":
        """The plan that `to_json` wrote; ValueError if the text is anything else."""
        from anystep._plan_files import checked, from_text

        tables, threshold = checked(from_text(text), _TABLES)
        return cls(*tables, threshold=threshold)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a ``.json`` or ``.npz`` file, whole or not at all."""
        from anystep._plan_files import write

        write(path, self._tables, self.threshold)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Read a file that `save` wrote. Data only: nothing in the file can run."""
        from anystep._plan_files import checked, read

        tables, threshold = checked(read(path), _TABLES)
        return cls(*tables, threshold=threshold)

    @property
    def _tables(self) -> dict[str, Float64]:
        return {name: getattr(self, name) for name in _TABLES}


def _moved(table: Float64) -> int | None:
    """The column that every row of a table passes on unchanged; never x̂₀, which exists only in working precision."""
    source = Combination.source(table)
    return None if source == X0 else source


def _refuse_infinite(tables: Mapping[str, Float64]) -> None:
    for name, table in tables.items():
        for where in np.argwhere(~np.isfinite(table)).tolist():
            raise ValueError(
                f"{name}{where}={table[tuple(where)]}: expected finite coefficients; check the levels."
            )


_TABLES = tuple(part.name for part in fields(Plan) if part.init and part.name != "threshold")


def compose(
    levels: Levels, prediction: Prediction, rows: Float64, threshold: "Threshold | None" = None
) -> Plan:
    """A plan from a sampler's rows, which know nothing of what the model predicts.

    Parameters
    ----------
    levels
        Ends of the N steps, a model call each.
    prediction
        What the model returns.
    rows
        The sampler's coefficients, shape (N, 1 + K, 3 + K + R), whose columns are (x, ε̂, x̂₀, memories,
        noises): like a plan's, with the noise estimate in place of the raw model output.
    threshold
        Bound on x̂₀; ε̂ stays the unbounded one.

    Raises
    ------
    ValueError
        If the model predicts ε at a level without signal (alpha_t = 0) and nothing bounds x̂₀.
    """
    level = levels.model_level
    blind = ("edm",) if threshold is not None else ("epsilon", "score", "edm")
    if prediction.name in blind and level.alpha_t.min() <= 0:
        raise ValueError(
            f"prediction={prediction.name!r} cannot recover the clean sample at alpha_t = 0 (zero terminal SNR): train with "
            "v_prediction or sample, clip the estimate, or choose a spacing that skips the last training timestep."
        )
    a, b = prediction.to_sample(level)
    c, d = prediction.to_noise(level)
    table = np.array(rows, dtype=np.float64)
    noise = table[:, :, MODEL_OUTPUT].copy()
    table[:, :, X] += noise * (c * levels.scale)[:, None]
    table[:, :, MODEL_OUTPUT] = noise * np.asarray(d)[:, None]
    estimate = np.empty((levels.steps, 2))
    estimate[:, 0], estimate[:, 1] = a * levels.scale, b
    return Plan(
        timesteps=prediction.timestep(level),
        alpha=np.concatenate([levels.cur.alpha_t, levels.nxt.alpha_t[-1:]]),
        sigma=np.concatenate([levels.cur.sigma_t, levels.nxt.sigma_t[-1:]]),
        input_scale=levels.scale * prediction.input_scale(level),
        estimate=estimate,
        update=table,
        threshold=threshold,
    )
