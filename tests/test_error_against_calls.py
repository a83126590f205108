"""`examples/error_against_calls.py`: its exact solution is exact, its slopes are the orders, and its table is in the docs."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from anystep import DDIM, Euler

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "examples" / "error_against_calls.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def few(script):
    """Three digits and their exact ends but for 2e-7, the kinks passed over."""
    asked = script.problem(3)
    return asked, script.exact(asked, 1e-8, pieces=0)


def slope(script, sampler, asked, solution, calls=(32, 64, 128)):
    curve = script.errors(sampler, asked, solution, calls)
    assert [count for count, _ in curve] == pytest.approx(calls, abs=1)
    return script.fitted(curve, calls[0], calls[-1])


@pytest.mark.parametrize(
    ("label", "order"),
    [
        ("DDIM (= Euler)", 1),
        ("Heun", 2),
        ("LMS 3", 3),
        ("IPNDM 4", 2),
        ("DPM-Solver 2", 2),
        ("DPM-Solver++ 2", 2),
        ("UniPC 1", 2),
        ("UniPC 2", 3),
    ],
)
def test_slopes_are_the_orders(script, few, label, order):
    assert abs(slope(script, script.made(label), *few) - order) < 0.3


def test_a_fault_of_a_thousandth_is_seen(script, few):
    class Off(type(script.made("UniPC 2"))):
        def rows(self, levels):
            return super().rows(levels) * (1 + 1e-5)

    assert slope(script, Off(2, lower_order_final=False), *few) < 2


def test_the_first_step_limits_the_order_where_the_model_changes(script, few):
    """From sigma = 5 on LMS 4 has the order of a run that begins with Euler's step."""
    asked, solution = few
    start = script.exact(asked._replace(low=5.0), 1e-8, pieces=0)
    asked = asked._replace(start=start, high=5.0)
    assert abs(slope(script, script.made("LMS 4"), asked, solution, (64, 128, 256)) - 2) < 0.3


def test_ddim_is_euler(script, few):
    asked, solution = few
    one, other = (script.errors(sampler, asked, solution, (16,)) for sampler in (DDIM(), Euler()))
    assert one[0][1] == pytest.approx(other[0][1], rel=1e-9)


def test_runs_have_at_most_so_many_calls(script, few):
    curves = {label: script.errors(script.made(label), *few, (4, 12)) for label in script.METHODS}
    counts = {label: [count for count, _ in curve] for label, curve in curves.items()}
    assert (
        counts["Heun"] == [11] and counts["PNDM, improved Euler"] == [4, 12] and counts["UniPC 3"] == [4, 12]
    )
    assert counts["PNDM, Runge-Kutta"] == [9]


# --- the exact solution ---


class Known:
    """Data with mean m and standard deviation s, whose ODE has a closed form, in place of the digits."""

    mean, std = 0.3, 0.5

    def guided(self, x, t, labels, guidance):
        level = self.schedule.level(t)
        alpha, sigma = level.alpha_t, level.sigma_t
        clean = self.mean + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * (
            x - alpha * self.mean
        )
        return alpha * (x - alpha * clean) / sigma - sigma * clean


@pytest.mark.parametrize("pieces", [1, 2])
def test_the_exact_solution_is_exact(script, monkeypatch, pieces):
    known = Known()
    known.schedule = script.SCHEDULE
    monkeypatch.setattr(script.digits, "load", lambda: known)
    asked = script.problem(2, low=1.0)
    spread = np.sqrt((1.0 + known.std**2) / (asked.high**2 + known.std**2))
    expected = known.mean + (asked.start - known.mean) * spread
    found = script.exact(asked, 1e-10, pieces)
    assert np.abs(found - expected).max() < 1e-11 * asked.high
    # And what the samplers approach is the same.
    curve = script.errors(script.made("UniPC 3"), asked, expected, (64,))
    assert curve[0][1] < 1e-4


def test_kinks_are_begun_anew(script, few):
    """Between neighbouring timesteps one step is as good as four; across many, kinks keep DOP853 from its tolerance."""
    asked, _ = few
    asked = asked._replace(high=1.0, low=0.6, start=asked.start / asked.high)
    one, four = script.exact(asked, 1e-12, 1), script.exact(asked, 1e-12, 4)
    loose = script.exact(asked, 1e-9, pieces=0)
    assert script.distance(one, four) < 1e-14 < 1e-11 < script.distance(one, loose) < 1e-6


# --- the figure and the table ---


def test_the_docs_have_what_the_script_computes(script):
    """The noise and the digits of the docs, with a solution exact to 4e-6."""
    text = (ROOT / "docs" / "accuracy.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d.e| +-]+) \|$", text.split(script.MARKS[0])[1], re.MULTILINE))
    assert list(rows) == list(script.METHODS)
    asked = script.problem()
    solution = script.exact(asked, 1e-6, pieces=0)
    for label in ("DDIM (= Euler)", "Heun", "DPM-Solver++ 3", "UniPC 2"):
        ((_, found),) = script.errors(script.made(label), asked, solution, (16,))[-1:]
        assert float(rows[label].split(" | ")[1]) == pytest.approx(found, rel=0.06)


def test_written_between_the_marks(script):
    text = "\n".join(["before", script.MARKS[0], "old", script.MARKS[1], "after"])
    once = script.written(text, ["| new |"])
    assert once == "\n".join(["before", script.MARKS[0], "| new |", script.MARKS[1], "after"])
    assert script.written(once, ["| new |"]) == once


def test_figure_and_table(script):
    pytest.importorskip("matplotlib")
    curves = {
        label: [(n, float(n) ** -(1 + i % 3)) for n in script.CALLS] for i, label in enumerate(script.METHODS)
    }
    head, _, *rows = script.table(curves)
    assert head.count("|") == 9 and len(rows) == len(curves)
    assert rows[0] == "| DDIM (= Euler) | 1.2e-01 | 6.2e-02 | 3.1e-02 | 1.6e-02 | 7.8e-03 | 3.9e-03 | 1.00 |"
    assert rows[1].endswith("| 2.00 |")
    assert script.figure(curves).startswith(b"\x89PNG")
