"""The harness of `benchmarks`: its statistics on times that are known, and one run of it with a clock that only counts."""

import doctest

import numpy as np
import pytest

from harness import load

timing, goals = load("timing"), load("goals")


class Clock(timing.Clock):
    """Time passes only where a candidate says so."""

    def __init__(self):
        self.seconds, self.switches = 0.0, 0

    def now(self):
        return self.seconds

    def disturbances(self):
        return self.switches


def passing(clock, durations, disturbed=()):
    """A candidate that takes these times, one after the other; some of its runs are disturbed."""
    left, number = list(durations), [0]

    def run():
        clock.seconds += left[min(number[0], len(left) - 1)]
        clock.switches += number[0] in disturbed
        number[0] += 1

    return timing.Candidate(lambda: run)


def test_the_ratio_is_the_median_of_those_within_rounds():
    """The machine gets slower: a ratio of medians, or of unlike rounds, would see it; and one round is spoilt."""
    clock = Clock()
    drift = [9e-3, *np.linspace(1e-3, 9e-3, 8)]  # the first is the round that does not count
    spoilt = [3 * t for t in drift[:4]] + [100 * drift[4]] + [3 * t for t in drift[5:]]
    found = timing.Rounds.run({"a": passing(clock, spoilt), "b": passing(clock, drift)}, 8, clock=clock)
    ratio = found.ratio("a", "b")
    assert ratio.value == pytest.approx(3) and ratio.low == pytest.approx(3) and ratio.rounds == 8
    assert found.time("b").value == pytest.approx(np.median(drift[1:]))


def test_a_disturbed_sample_is_made_again_and_else_dropped():
    clock = Clock()
    again = passing(clock, [1e-3, 9e-3, *[1e-3] * 20], disturbed={1})
    found = timing.Rounds.run({"a": again}, 6, clock=clock)
    assert found.seconds["a"] == pytest.approx([1e-3] * 6) and all(found.clean["a"])
    stays = passing(clock, [1e-3, 8e-3, 7e-3, 9e-3, *[1e-3] * 20], disturbed={1, 2, 3})
    found = timing.Rounds.run({"a": stays}, 6, clock=clock)
    assert found.seconds["a"][0] == pytest.approx(7e-3) and not found.clean["a"][0]
    summary = found.time("a")
    assert summary.value == pytest.approx(1e-3) and summary.rounds == 5 and summary.clean
    always = passing(clock, [1e-3], disturbed=set(range(99)))
    summary = timing.Rounds.run({"a": always}, 6, clock=clock).time("a")
    assert summary.rounds == 6 and not summary.clean


def test_a_long_sample_counts_as_it_is():
    clock, tried = Clock(), []

    def run():
        tried.append(1)
        clock.seconds += 1.0
        clock.switches += 1

    timing.Rounds.run({"a": timing.Candidate(lambda: run)}, 3, clock=clock)
    assert len(tried) == 1 + 3


def test_times_are_of_one_call_and_what_is_prepared_is_not_timed():
    clock = Clock()

    def prepare():
        clock.seconds += 5.0

        def run():
            clock.seconds += 0.01

        return run

    found = timing.Rounds.run({"a": timing.Candidate(prepare, calls=10)}, 2, clock=clock)
    assert found.seconds["a"] == pytest.approx([1e-3, 1e-3])


def test_the_order_is_drawn_anew_each_round():
    clock, seen = Clock(), []
    candidates = {
        name: timing.Candidate(lambda name=name: lambda: seen.append(name)) for name in ("a", "b", "c")
    }
    timing.Rounds.run(candidates, 12, clock=clock)
    rounds = [tuple(seen[i : i + 3]) for i in range(0, len(seen), 3)]
    assert all(set(one) == {"a", "b", "c"} for one in rounds) and len(set(rounds)) > 2


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_quantiles_are_those_of_numpy(count):
    values = np.random.default_rng(count).normal(size=count).tolist()
    for share in (0.0, 0.25, 0.5, 0.9, 1.0):
        assert timing.quantile(values, share) == pytest.approx(np.quantile(values, share))


def test_a_goal_is_judged_by_its_worst_measurement():
    def record(value, subject="A", library="torch", microseconds=None):
        return goals.Record("step", subject, value, "x", library, "tiny", microseconds=microseconds)

    goal = goals.Goal("G", "says", "step", 0.5, {"subject": ("A", "B"), "library": "torch"})
    records = [record(0.4), record(0.6, "B"), record(9.0, "C"), record(9.0, library="jax")]
    (verdict,) = goals.judge(records, [goal])
    assert verdict.worst.subject == "B" and verdict.met is False and "20 %" in verdict.text
    assert verdict.within == (1, 2)
    (verdict,) = goals.judge(records[:1], [goal])
    assert verdict.met and "1.2x" in verdict.text
    (verdict,) = goals.judge(records[2:], [goal])
    assert verdict.met is None and verdict.text == "not measured"
    timed = goals.Goal("G", "says", "step", 5, {}, "microseconds")
    (verdict,) = goals.judge([record(0.1, microseconds=15.0), record(0.1)], [timed])
    assert verdict.value == 15.0 and "3.0x" in verdict.text


def test_each_goal_is_about_something_that_is_measured():
    """A goal whose subject is misspelt would be 'not measured' for ever."""
    cases = load("cases")
    names = {one.name for one in cases.subjects()}
    sizes, libraries = {one.name for one in cases.SIZES}, {one.name for one in cases.LIBRARIES}
    for goal in goals.GOALS:
        wheres = {key: {value} if isinstance(value, str) else set(value) for key, value in goal.where.items()}
        if goal.item == "step":
            assert wheres.get("subject", set()) <= names, goal.says
        assert wheres.get("size", set()) <= sizes, goal.says
        assert wheres.get("library", set()) <= libraries, goal.says


class Counting(timing.Clock):
    """A clock on which a second passes whenever it is looked at."""

    def __init__(self):
        self.ticks = 0.0

    def now(self):
        self.ticks += 1e-3
        return self.ticks

    def disturbances(self):
        return 0


def test_a_run_from_measurement_to_page(tmp_path):
    steps, costs, report = load("steps"), load("costs"), load("report")
    run = load("run").Run(rounds=1, clock=Counting(), libraries=("torch", "numpy"))
    run.subjects, run.sizes = ("DDIMScheduler", "DDPMScheduler", "RePaintScheduler"), ("tiny",)
    with load("run").quiet():
        records = [*steps.steps(run), *steps.draws(run), *steps.tables(run), *costs.dispatch(run)]
    step = [one for one in records if one.item == "step"]
    assert {(one.subject, one.library) for one in step} == {
        (subject, library) for subject in run.subjects for library in run.libraries
    }
    assert all(one.value == pytest.approx(1) and one.microseconds > 0 for one in step)
    assert {one.subject for one in records if one.item == "step with draw"} == {
        "DDPMScheduler",
        "RePaintScheduler",
    }
    about = {
        "date": "2000-01-01",
        "processor": "none",
        "threads": 1,
        "python": "3",
        "versions": {"numpy": "2"},
    }
    found = {"about": about, "records": [one.to_dict() for one in records]}
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- end of measured -->\nafter\n")
    report.write_between_markers(page, report.to_markdown(found))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| DDIMScheduler | diffusers |" in text and "1.0x" in text
    report.plot(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert report.to_tables(found)
    (tmp_path / "bare.md").write_text("no markers")
    with pytest.raises(ValueError, match="expected the markers"):
        report.write_between_markers(tmp_path / "bare.md", "")
    with pytest.raises(ValueError, match="not a report"):
        report.from_json("[]")


def test_draws_are_taken_out_on_both_sides_and_put_back():
    import torch
    from diffusers.schedulers import scheduling_ddpm

    from anystep.schedulers import ddpm

    cases = load("cases")
    (subject,) = [one for one in cases.subjects() if one.name == "DDPMScheduler"]
    before = scheduling_ddpm.randn_tensor, ddpm.draw
    x, m = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 2, 2)
    with load("fixed").fixed_draws() as seen:
        both = []
        for scheduler in (subject.ours().to("torch"), subject.theirs()):
            scheduler.set_timesteps(4)
            both.append(scheduler.step(m, scheduler.timesteps[0], x, return_dict=False)[0])
    assert seen.count == 2
    torch.testing.assert_close(*both)
    assert (scheduling_ddpm.randn_tensor, ddpm.draw) == before


def test_formulas_of_k_diffusion_are_what_they_are_beside():
    """To 1e-5: theirs are in float32, and LMS's integrals are done to 1e-4."""
    import torch

    from anystep import LMS, BetaSchedule, DPMSolver, Euler, EulerAncestral, Karras, init, update

    formulas = load("kdiffusion").FORMULAS
    samplers = {"Euler": Euler(), "EulerAncestral": EulerAncestral(), "DPMSolver": DPMSolver(), "LMS": LMS()}
    levels = Karras().levels(BetaSchedule.named("scaled_linear"), 12).to_karras()
    for name, (formula, ours, _) in formulas.items():
        plan = samplers[ours].plan(levels, "sample")
        source = torch.Generator().manual_seed(0)
        cleans = [torch.randn(64, generator=source) for _ in range(12)]
        noise, start = torch.randn(64, generator=source), torch.randn(64, generator=source) * plan.sigma[0]
        state = init(plan, start)
        for i in range(12):
            state = update(plan, i, state, cleans[i], noise if plan.stochastic[i] else None)
        sigmas = torch.tensor(plan.sigma, dtype=torch.float32)
        theirs = formula(lambda x, i: cleans[i], start, sigmas, *((noise,) if plan.noises else ()))
        apart = float((state.x - theirs).abs().max() / theirs.abs().max())
        assert apart < 1e-5, (name, apart)


@pytest.mark.parametrize("name", ["report", "timing"])
def test_examples_of_docstrings(name):
    found = doctest.testmod(load(name))
    assert found.attempted and not found.failed


def test_without_a_gpu_the_gpu_part_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="no GPU"):
        list(load("cuda").measure(1))
