"""Distance to the exact solution against model calls, for every deterministic sampler: a figure and a table in docs.

    pip install ".[docs]" && python examples/error_against_calls.py [--out FILE] [--table FILE] [--count N] [--seed S]

The model is that of the digits, without guidance and without a bound on its estimate, in float64. In Karras' coordinates
y = x / alpha its probability-flow ODE is dy/dσ = ε̂(y, σ). All samplers start from the same noise at the schedule's largest
karras_sigma, 157.4, and end at its smallest, 0.01, so that what remains is the solver's error alone: a last step to σ = 0
would be the same Euler step, of one size, whatever the number of steps. Levels are Karras' with rho = 7.

The exact solution is SciPy's DOP853. Between training timesteps the schedule's t(σ) is linear in log σ, and has a kink at each:
the integration begins anew at every one, which makes the solution exact to rounding.
"""

import argparse
import bisect
import io
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

import anystep
from anystep import BetaSchedule, Karras, Levels, sample
from anystep.demo import digits

DOCS = Path(__file__).parents[1] / "docs"
SCHEDULE = BetaSchedule.named("linear")
METHODS = {
    "DDIM (= Euler)": ("DDIM", {}),
    "Heun": ("Heun", {}),
    "LMS 2": ("LMS", {"order_max": 2}),
    "LMS 3": ("LMS", {"order_max": 3}),
    "LMS 4": ("LMS", {"order_max": 4}),
    "IPNDM 4": ("IPNDM", {"order_max": 4}),
    "PNDM, Runge-Kutta": ("PNDM", {"schedule": SCHEDULE}),
    "PNDM, improved Euler": ("PNDM", {"warmup": "improved_euler"}),
    "DPM-Solver 2": ("DPMSolver", {"order_max": 2, "integrand": "noise"}),
    "DPM-Solver 3": ("DPMSolver", {"order_max": 3, "integrand": "noise"}),
    "DPM-Solver++ 2": ("DPMSolver", {"order_max": 2}),
    "DPM-Solver++ 3": ("DPMSolver", {"order_max": 3}),
    "UniPC 1": ("UniPC", {"order_max": 1, "lower_order_final": False}),
    "UniPC 2": ("UniPC", {"order_max": 2, "lower_order_final": False}),
    "UniPC 3": ("UniPC", {"order_max": 3, "lower_order_final": False}),
}
"""Label: sampler and options. Of order 1, DPM-Solver is DDIM. Lower orders at the end are for an end without noise."""
CALLS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SHOWN = (8, 16, 32, 64, 128, 256)
"""Columns of the table."""
FITTED = (64, 256)
"""Calls between which slopes are fitted."""
MARKS = "<!-- error against calls -->", "<!-- end of error against calls -->"


class Problem(NamedTuple):
    """Digits to draw, from a level to a level, and their exact ends."""

    labels: np.ndarray
    start: np.ndarray
    """y at the first level, shape (B, 1, 8, 8), float64."""
    high: float
    low: float
    schedule: BetaSchedule = SCHEDULE

    def velocity(self, x, t):
        """What the model says of x_t."""
        return digits.load().guided(x, float(np.clip(t, *self.schedule.t_range)), self.labels, 1.0)

    def slope(self, log_sigma, y):
        """Derivative of flat y by log σ."""
        sigma = float(np.clip(np.exp(log_sigma), self.low, self.high))
        level = self.schedule.at(sigma)
        x = level.alpha_t * y.reshape(self.start.shape)
        noise = level.sigma_t * x + level.alpha_t * self.velocity(x, level.t)
        return sigma * noise.ravel()

    def levels(self, steps):
        """Levels of N steps."""
        found = Karras(self.high, self.low).points(self.schedule, steps + 1)
        return Levels.chain(found.t, found.alpha_t, found.sigma_t)

    def solve(self, plan):
        """The last level's y."""
        return sample(self.velocity, plan, self.start * plan.alpha[0]) / plan.alpha[-1]


def problem(count=20, seed=0, high=SCHEDULE.sigma_max, low=SCHEDULE.sigma_min):
    """Digits of each class in turn, from noise."""
    labels = np.arange(count) % 10
    noise = np.random.default_rng(seed).standard_normal((count, 1, 8, 8))
    return Problem(labels, noise * np.hypot(high, 1), high, low)


def exact(problem, tolerance=1e-12, pieces=1, progress=iter):
    """The last level's y by DOP853 with a relative tolerance.

    Between two training timesteps in at least so many steps; with ``pieces`` = 0 as if there were no kinks.
    """
    ends = np.log([problem.high, problem.low])
    if pieces:
        kinks = np.log(problem.schedule.karras_sigmas[::-1])
        ends = np.r_[ends[0], kinks[(kinks < ends[0] - 1e-9) & (kinks > ends[1] + 1e-9)], ends[1]]
        ends = np.interp(np.arange(0, len(ends) - 1 + 1e-9, 1 / pieces), np.arange(len(ends)), ends)
    y = problem.start.ravel()
    for one, other in progress(list(itertools.pairwise(ends))):
        found = solve_ivp(
            problem.slope, (one, other), y, method="DOP853", rtol=tolerance, atol=tolerance * 1e-2
        )
        y = found.y[:, -1]
    return y.reshape(problem.start.shape)


def distance(y, solution):
    """Root mean square over pixels of digits; a pixel is in [-1, 1]."""
    return float(np.sqrt(np.mean((y - solution) ** 2)))


def made(label):
    """The sampler of a label."""
    name, options = METHODS[label]
    return getattr(anystep, name)(**options)


def errors(sampler, problem, solution, calls=CALLS):
    """(model calls, distance) of the longest runs with at most so many calls, and four at least."""
    plans = {}
    for most in calls:
        count = lambda steps: len(sampler.plan(problem.levels(steps), "v_prediction"))  # noqa: E731
        steps = bisect.bisect_right(range(1, most + 1), most, key=count)
        if steps:
            plan = sampler.plan(problem.levels(steps), "v_prediction")
            plans[len(plan)] = plan
    return [
        (count, distance(problem.solve(plan), solution))
        for count, plan in sorted(plans.items())
        if count >= CALLS[0]
    ]


def fitted(curve, least=FITTED[0], most=FITTED[1]):
    """Slope of log distance against log calls, positive where errors fall."""
    calls, found = np.log([point for point in curve if least * 0.9 <= point[0] <= most]).T
    return -float(np.polyfit(calls, found, 1)[0])


def table(curves):
    """Markdown; each cell is the run with the most calls that the column allows."""
    yield f"| sampler | {' | '.join(f'{n} calls' for n in SHOWN)} | slope |"
    yield f"|---|{'--:|' * (len(SHOWN) + 1)}"
    for label, curve in curves.items():
        cells = [max(point for point in curve if point[0] <= n)[1] for n in SHOWN]
        yield f"| {label} | {' | '.join(f'{cell:.1e}' for cell in cells)} | {fitted(curve):.2f} |"


def written(text, rows):
    """The text with what is between the marks replaced."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return "\n".join([before + MARKS[0], *rows, MARKS[1] + after])


COLORS = {
    "DDIM": "black",
    "Heun": "tab:red",
    "LMS": "tab:blue",
    "IPNDM": "tab:olive",
    "PNDM": "tab:brown",
    "DPM-Solver": "tab:green",
    "DPM-Solver++": "tab:purple",
    "UniPC": "tab:orange",
}
STYLES = {"2": ("--", "s"), "3": ("-", "^"), "4": ("-.", "D"), "Euler": (":", "v")}


def figure(curves):
    """PNG of the curves, with slopes 1, 2 and 3 beside them."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 6.4), dpi=110, layout="constrained")
    axes = drawn.subplots()
    for label, curve in curves.items():
        family, last = label.split(",")[0].split()[0], label.split()[-1]
        line, marker = STYLES.get(last, ("-", "o"))
        axes.loglog(
            *zip(*curve, strict=True),
            color=COLORS[family],
            linestyle=line,
            marker=marker,
            markersize=4,
            linewidth=1.4,
            label=f"{label}  ({fitted(curve):.2f})",
        )
    right = max(calls for curve in curves.values() for calls, _ in curve)
    for slope, top in ((1, 4.2e-3), (2, 2.9e-4), (3, 2.8e-6)):
        calls = np.array([right * 1.15, right * 1.9])
        axes.loglog(calls, top * (calls / calls[0]) ** -slope, color="0.4", linewidth=2)
        axes.annotate(
            f"slope {slope}",
            (calls[0], top),
            xytext=(0, 6),
            textcoords="offset points",
            color="0.3",
            fontsize=9,
        )
    axes.set(
        xlabel="model calls", ylabel="root mean square distance to the exact solution (pixels in [-1, 1])"
    )
    axes.set(xlim=(3.6, right * 2.1), ylim=(1e-7, 3))
    axes.set_xticks([n for n in CALLS if n & (n - 1) == 0], [str(n) for n in CALLS if n & (n - 1) == 0])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    title = f"sampler  (slope, {FITTED[0]} to {FITTED[1]} calls)"
    axes.legend(title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, handlelength=3.5)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()


def main():
    from rich.console import Console
    from rich.progress import track

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS / "error_against_calls.png")
    parser.add_argument("--table", type=Path, default=DOCS / "accuracy.md", help="file with the two marks")
    parser.add_argument("--count", type=int, default=20, help="digits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    console = Console(stderr=True)
    asked = problem(args.count, args.seed)
    solutions = [
        exact(asked, *options, progress=lambda all, note=note: track(all, note, console=console))
        for note, options in (
            ("exact solution", (1e-12, 1)),
            ("looser tolerance", (1e-9, 1)),
            ("steps half as long", (1e-12, 2)),
        )
    ]
    console.print(
        f"largest difference of the exact solution to that with tolerance 1e-9: {abs(solutions[1] - solutions[0]).max():.1e}, "
        f"with steps half as long: {abs(solutions[2] - solutions[0]).max():.1e}"
    )
    curves = {
        label: errors(made(label), asked, solutions[0])
        for label in track(METHODS, "samplers", console=console)
    }
    args.out.write_bytes(figure(curves))
    args.table.write_text(written(args.table.read_text(encoding="utf-8"), table(curves)), encoding="utf-8")
    print(*table(curves), sep="\n")


if __name__ == "__main__":
    main()
