"""UniPC: the paper's formulas in 60 digits, identities, both ends of the process, orders of convergence."""

import itertools
import math

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings

from anystep import DDIM, VP, Clip, Karras, Levels, RectifiedFlow, State, Trailing, UniPC, init, update
from anystep.predictions import PREDICTIONS

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=40)
X, NOISE, X0, CORRECTED, PAST = range(5)
each_variant = pytest.mark.parametrize("variant", ["bh1", "bh2"])
each_integrand = pytest.mark.parametrize("integrand", ["x0", "noise"])
each_prediction = pytest.mark.parametrize("predicts", PREDICTIONS)


def uneven(steps, unit="vp", seed=0, low=-1.5, high=0.3, clean=False):
    """Levels in any coordinates, with steps of 10^low to 10^high in λ."""
    rng = np.random.default_rng(seed)
    ratios = np.exp(3 - np.append(0.0, np.cumsum(10.0 ** rng.uniform(low, high, steps))))
    if clean:
        ratios[-1] = 0.0
    alpha_t = {
        "vp": 1 / np.sqrt(1 + ratios**2),
        "karras": np.ones(steps + 1),
        "flow": 1 / (1 + ratios),
        "any": 10.0 ** rng.uniform(-1, 1, steps + 1),
    }[unit]
    return Levels.chain(np.arange(steps + 1)[::-1], alpha_t, alpha_t * ratios)


def chains(least=1, clean=True):
    units = st.sampled_from(["any", "vp", "karras", "flow"])
    ends = st.booleans() if clean else st.just(False)
    return st.builds(
        lambda steps, unit, seed, ends: uneven(steps, unit, seed, clean=ends),
        st.integers(least, 9),
        units,
        st.integers(0, 2**32 - 1),
        ends,
    )


# ---------------------------------------------------------------- the paper's formulas


def phi(k, z):
    """φ_k(z) = ∫ e^((1 - u) z) u^(k - 1) / (k - 1)! du over [0, 1]."""
    return mpmath.hyp1f1(1, k + 1, z) / mpmath.factorial(k)


def paper(levels, i, count, corrects, variant, integrand):
    """Factors of algorithm 1 (corrects) or 2 on c at the start of step i, on its estimate and `count` - 1 before; if it
    corrects, last on the estimate at the end. The linear system is solved, in 60 digits.
    """
    point = lambda level, k: tuple(mpmath.mpf(float(v[k])) for v in (level.alpha_t, level.sigma_t))
    (alpha_s, sigma_s), (alpha_t, sigma_t) = point(levels.cur, i), point(levels.nxt, i)
    half_snr = lambda level: mpmath.log(level[0] / level[1])
    start = half_snr((alpha_s, sigma_s))
    h = half_snr((alpha_t, sigma_t)) - start
    r = [(half_snr(point(levels.cur, i - k)) - start) / h for k in range(1, count)] + [
        mpmath.mpf(1)
    ] * corrects
    data = integrand == "x0"
    hh = -h if data else h
    b = hh if variant == "bh1" else mpmath.expm1(hh)
    if len(r) == 1:
        weights = [mpmath.mpf(1) / 2]
    elif r:
        system = mpmath.matrix([[x ** (n - 1) for x in r] for n in range(1, len(r) + 1)])
        right = [hh * mpmath.factorial(n) * phi(n + 1, hh) / b for n in range(1, len(r) + 1)]
        weights = list(mpmath.lu_solve(system, mpmath.matrix(right)))
    else:
        weights = []
    scale, carry = (-alpha_t, sigma_t / sigma_s) if data else (-sigma_t, alpha_t / alpha_s)
    each = [scale * b * w / x for w, x in zip(weights, r, strict=True)]
    return carry, [scale * mpmath.expm1(hh) - sum(each), *each]


def expected_rows(sampler, levels):
    """(x, ε̂, x̂₀, c, estimates before) of next x and c, by algorithms 1 and 2 one after the other."""
    present = X0 if sampler.integrand == "x0" else NOISE
    p, count = sampler.order_max, levels.steps
    order = lambda i: min(p, i + 1, count - i if sampler.lower_order_final else p)
    rows = []
    for i in range(count):
        c, nxt = [mpmath.mpf(0)] * (4 + p), [mpmath.mpf(0)] * (4 + p)
        if i and sampler.corrector and i - 1 not in sampler.skip_corrector:
            carry, weights = paper(levels, i - 1, order(i - 1), True, sampler.variant, sampler.integrand)
            c[CORRECTED], c[present] = carry, weights[-1]
            for k, w in enumerate(weights[:-1]):
                c[PAST + k] = w
        else:
            c[X] = mpmath.mpf(1)
        carry, weights = paper(levels, i, order(i), False, sampler.variant, sampler.integrand)
        nxt = [carry * value for value in c]
        for k, w in enumerate(weights):
            nxt[present if k == 0 else PAST + k - 1] += w
        if present == NOISE and c[X]:  # written with x = alpha x̂₀ + sigma ε̂, so that nothing cancels
            nxt[X0] = nxt[X] * mpmath.mpf(float(levels.cur.alpha_t[i]))
            nxt[NOISE] += nxt[X] * mpmath.mpf(float(levels.cur.sigma_t[i]))
            nxt[X] = mpmath.mpf(0)
        rows.append((nxt, c))
    return rows


@each_integrand
@each_variant
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("low", "high"), [(-1.5, 0.3), (-7, -6), (-3, -3), (0.5, 1.0)], ids=["uneven", "tiny", "even", "long"]
)
@pytest.mark.parametrize("unit", ["karras", "any"])
def test_rows_are_the_papers(order, variant, integrand, low, high, unit):
    """No digits are lost, however short the steps are: the linear system solved in float64 would be off by 1e-3 at order 5.

    Where alpha is not 1, λ of the rounded alpha and sigma has an error of 1e-16 however small its difference h; that of the
    row is up to karras_sigma = 20 times as large, and r_k, quotients of steps of 10^-7, are off by 1e-9.
    """
    sampler = UniPC(order, variant, integrand, skip_corrector=(3,), lower_order_final=order % 2 == 1)
    levels = uneven(8, unit, 1, low, high)
    worst = 0.0
    with mpmath.workdps(60):
        for row, wanted in zip(sampler.rows(levels), expected_rows(sampler, levels), strict=True):
            for found, exact in zip(row[:2], wanted, strict=True):
                estimates = [NOISE, X0, *range(PAST, 4 + order)] if unit == "karras" else range(4 + order)
                largest = max(abs(exact[k]) for k in estimates)
                off = max(abs(found[k] - exact[k]) for k in estimates)
                worst = max(worst, float(off / largest) if largest else float(off))
                carry = max(abs(exact[X]), abs(exact[CORRECTED]))
                assert all(abs(found[k] - exact[k]) <= 1e-15 * carry for k in (X, CORRECTED))
    assert worst <= (1e-13 if unit == "karras" else 2e-12), worst


@each_integrand
@each_variant
@EXAMPLES
@given(levels=chains(least=4, clean=False), order=st.integers(1, 5), final=st.booleans())
def test_rows_are_the_papers_on_any_levels(variant, integrand, levels, order, final):
    sampler = UniPC(order, variant, integrand, lower_order_final=final)
    with mpmath.workdps(60):
        for row, wanted in zip(sampler.rows(levels), expected_rows(sampler, levels), strict=True):
            for found, exact in zip(row[:2], wanted, strict=True):
                size = max(abs(value) for value in exact)
                assert all(abs(a - b) <= 1e-12 * size for a, b in zip(found, exact, strict=True))


# ---------------------------------------------------------------- identities


def by_x0(row, alpha_t, sigma_t):
    """Factors on (x̂₀, ε̂) where x = alpha_t x̂₀ + sigma_t ε̂."""
    return row[X] * alpha_t + row[X0], row[X] * sigma_t + row[NOISE]


@each_integrand
@each_variant
@EXAMPLES
@given(levels=chains(), order=st.integers(1, 4), corrector=st.booleans())
def test_constant_estimates_land_on_the_next_level(variant, integrand, levels, order, corrector):
    """Where x̂₀ and ε̂ never change, alpha x_0 + sigma ε becomes alpha_nxt x_0 + sigma_nxt ε, corrected or not."""
    rows = UniPC(order, variant, integrand, corrector).rows(levels)
    alphas, sigmas = (
        np.append(getattr(levels.cur, n), getattr(levels.nxt, n)[-1]) for n in ("alpha_t", "sigma_t")
    )
    for i, row in enumerate(rows):
        for clean, noise in ((1.0, 0.0), (0.0, 1.0), (0.7, -0.4)):
            here, before, end = (alphas[k] * clean + sigmas[k] * noise for k in (i, max(i - 1, 0), i + 1))
            estimate = clean if integrand == "x0" else noise
            past = [estimate] * (row.shape[1] - 3 - corrector)
            arrays = np.asarray([here, noise, clean, *[before] * corrector, *past])
            for found, wanted in zip(row[: 1 + corrector], (end, here), strict=False):
                assert abs(found @ arrays - wanted) <= 2e-14 * (abs(found) @ abs(arrays))


@each_integrand
@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_papers_weights_are_integrals_of_a_polynomial(count, corrects, integrand):
    """Through the estimates: by quadrature, of powers of λ. With the test above, so are the rows."""
    if count + corrects == 2:  # B(h) / 2
        return
    levels, i = uneven(6, "any", 5), 4
    logs = [
        mpmath.log(float(a) / float(s)) for a, s in zip(levels.cur.alpha_t, levels.cur.sigma_t, strict=True)
    ]
    start, end = logs[i], logs[i + 1]
    nodes = [logs[i - k] for k in range(count)] + [end] * corrects
    _, weights = paper(levels, i, count, corrects, "bh1", integrand)
    for degree in range(len(nodes)):
        value = lambda x: (x - start) ** degree
        if integrand == "x0":
            exact = float(levels.nxt.alpha_t[i]) * mpmath.quad(
                lambda x: mpmath.exp(x - end) * value(x), [start, end]
            )
        else:
            exact = -float(levels.nxt.sigma_t[i]) * mpmath.quad(
                lambda x: mpmath.exp(end - x) * value(x), [start, end]
            )
        terms = [w * value(node) for w, node in zip(weights, nodes, strict=True)]
        assert abs(sum(terms) - exact) <= 1e-11 * max(map(abs, terms))


@each_integrand
@EXAMPLES
@given(levels=chains(least=3))
def test_b_of_h_cancels_but_for_a_single_weight(integrand, levels):
    """bh1 and bh2 differ where a predictor has order 2 or a corrector order 1, and nowhere else."""
    one, two = (
        UniPC(4, variant, integrand, lower_order_final=False).rows(levels) for variant in ("bh1", "bh2")
    )
    for i in range(levels.steps):
        assert np.array_equal(one[i, 0], two[i, 0]) == (i != 1)
        assert np.array_equal(one[i, 1], two[i, 1]) == (i != 1)
    single = [UniPC(1, variant, integrand, corrector=False).rows(levels) for variant in ("bh1", "bh2")]
    np.testing.assert_array_equal(*single)


@EXAMPLES
@given(levels=chains(), lower=st.booleans())
def test_unip_2_bh2_is_dpm_solver_2m(levels, lower):
    """Exactly: DPM-Solver++ (2M) for x̂₀ (2211.01095, algorithm 2), and the multistep DPM-Solver-2 for ε̂; 1/2 for B(h) is theirs.

    bh1 replaces 1 - e^-h (e^h - 1) by h on their difference D_1 of estimates, and on nothing else.
    """
    ratio, end = levels.cur.karras_sigma, levels.nxt.karras_sigma
    with np.errstate(divide="ignore"):
        h = np.log(ratio / end)
    for integrand, variant in itertools.product(("x0", "noise"), ("bh1", "bh2")):
        rows = UniPC(2, variant, integrand, corrector=False, lower_order_final=lower).rows(levels)[:, 0]
        for i, row in enumerate(rows):
            alpha_n, sigma_n = levels.nxt.alpha_t[i], levels.nxt.sigma_t[i]
            first = i == 0 or sigma_n == 0 or (lower and i == levels.steps - 1)
            wanted = np.zeros(4)
            if integrand == "x0":
                weight, column = -alpha_n * np.expm1(-h[i]), X0
                wanted[[X, X0]] = sigma_n / levels.cur.sigma_t[i], weight
            else:  # alpha_n / alpha x - sigma_n (e^h - 1) ε̂, with x = alpha x̂₀ + sigma ε̂
                weight, column = sigma_n - alpha_n * ratio[i], NOISE
                wanted[[NOISE, X0]] = sigma_n, alpha_n
            if not first:
                b = weight if variant == "bh2" else alpha_n * h[i] if integrand == "x0" else -sigma_n * h[i]
                r = h[i - 1] / h[i]  # D_1 = (estimate - estimate before) / r
                wanted[column] += b / 2 / r
                wanted[3] -= b / 2 / r
            size = abs(wanted).max() + abs(weight)
            np.testing.assert_allclose(row[:4], wanted, rtol=0, atol=1e-13 * size)


@each_integrand
@each_variant
@EXAMPLES
@given(levels=chains())
def test_one_estimate_a_step_is_ddim(variant, integrand, levels):
    """UniP-1; and whatever the order, the first step, and a last one to the clean end."""
    exact = DDIM().rows(levels)[:, 0]

    def check(rows, which):
        for i in which:
            level = levels.cur.alpha_t[i], levels.cur.sigma_t[i]
            one, other = by_x0(rows[i, 0], *level), by_x0(exact[i], *level)
            carried = levels.nxt.alpha_t[i] * levels.cur.karras_sigma[i]
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-13 * (max(other) + carried))

    check(UniPC(1, variant, integrand, corrector=False).rows(levels), range(levels.steps))
    check(UniPC(3, variant, integrand).rows(levels), [0])
    if levels.nxt.sigma_t[-1] == 0:
        last = UniPC(3, variant, integrand, corrector=False, lower_order_final=False).rows(levels)
        assert (last[-1, 0, 3:] == 0).all()
        check(last, [levels.steps - 1])


@each_prediction
@EXAMPLES
@given(levels=chains(clean=True))
def test_one_step_of_any_order_is_ddim(predicts, levels):
    levels = Levels(levels.cur[:1], levels.nxt[:1])
    x, output = np.asarray([0.3, -2.0]), np.asarray([1.5, 0.2])
    for integrand in ("x0", "noise"):
        states = [
            update(plan, 0, init(plan, x), output)
            for plan in (UniPC(3, integrand=integrand).plan(levels, predicts), DDIM().plan(levels, predicts))
        ]
        size = np.abs(states[1].x).max() * (1 + float(levels.cur.karras_sigma[0])) * 10
        np.testing.assert_allclose(states[0].x, states[1].x, rtol=1e-12, atol=1e-13 * size)


# ---------------------------------------------------------------- memories


def test_memories():
    """The corrected sample, and the estimates from the samples that were predicted: the latter only move."""
    plan = UniPC(3).plan(uneven(6, clean=True), "sample")
    assert plan.memories == 4 and plan.noises == 0
    state = init(plan, np.ones(2))
    for i in range(len(plan)):
        output, before = np.full(2, float(i)), state.memory
        state = update(plan, i, state, output)
        np.testing.assert_array_equal(state.memory[1], output)
        assert all(kept is given for kept, given in zip(state.memory[2:], before[1:3], strict=True))
    assert UniPC(3, corrector=False).plan(uneven(6), "sample").memories == 2
    assert UniPC(1, corrector=False).plan(uneven(6), "sample").memories == 0


@each_integrand
@EXAMPLES
@given(levels=chains(), order=st.integers(1, 5), corrector=st.booleans())
def test_no_row_reads_what_no_call_has_written(integrand, levels, order, corrector):
    rows = UniPC(order, "bh1", integrand, corrector).rows(levels)
    assert rows.shape == (levels.steps, order + 2 * corrector, 2 + order + 2 * corrector)
    past = PAST if corrector else CORRECTED
    for i in range(levels.steps):
        assert (rows[i, : 1 + corrector, past + i :] == 0).all()
    if corrector:
        assert (rows[0, :, CORRECTED] == 0).all()


@each_integrand
@each_variant
def test_a_corrector_that_is_skipped_everywhere_is_none(variant, integrand):
    levels = uneven(7, clean=True)
    one = UniPC(3, variant, integrand, skip_corrector=range(7)).rows(levels)
    other = UniPC(3, variant, integrand, corrector=False).rows(levels)
    np.testing.assert_array_equal(np.delete(one[:, 0], [CORRECTED, one.shape[2] - 1], axis=1), other[:, 0])


@pytest.mark.parametrize("skipped", [(0,), (2, 3), (5,), (6, 40)])
def test_skipped_steps_keep_the_predicted_sample(skipped):
    levels = uneven(7)
    rows = UniPC(2, skip_corrector=skipped).rows(levels)
    for i in range(1, 7):
        assert (rows[i, 1, X] == 1) == (i - 1 in skipped)
        assert (rows[i, 1, CORRECTED] == 0) == (i - 1 in skipped)


@each_integrand
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_loop_of_the_paper(order, integrand):
    """Algorithms 1 and 2 as a loop: the model sees predicted samples, steps start from corrected ones."""
    levels = uneven(9, "vp", 4)
    sampler = UniPC(order, "bh2", integrand)
    plan = sampler.plan(levels, "epsilon")
    model = lambda x, i: np.tanh(x * (1 + 0.1 * i))
    x = np.linspace(-2, 2, 5) * plan.sigma[0]
    state, seen = init(plan, x), []
    start = x
    for i in range(len(plan)):
        output = model(state.x, i)
        np.testing.assert_allclose(state.x, x, rtol=1e-12, atol=1e-13)
        state = update(plan, i, state, output)
        noise = model(x, i)
        estimate = noise if integrand == "noise" else (x - plan.sigma[i] * noise) / plan.alpha[i]
        if i:
            carry, weights = paper(levels, i - 1, min(order, i, 9 - (i - 1)), True, "bh2", integrand)
            parts = zip(weights, [*seen[: len(weights) - 1], estimate], strict=True)
            start = float(carry) * start + sum(float(w) * part for w, part in parts)
            np.testing.assert_allclose(state.memory[0], start, rtol=1e-12, atol=1e-12)
        seen = [estimate, *seen]
        carry, weights = paper(levels, i, min(order, i + 1, 9 - i), False, "bh2", integrand)
        x = float(carry) * start + sum(float(w) * part for w, part in zip(weights, seen, strict=False))
    np.testing.assert_allclose(state.x, x, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- both ends


def ended(sigma, order, **options):
    """Rows of levels whose last sigma is given."""
    levels = uneven(6, "vp", 2)
    nxt = levels.nxt
    last = np.append(nxt.sigma_t[:-1], sigma)
    return UniPC(order, **options).rows(
        Levels.chain(
            np.arange(7)[::-1],
            np.append(levels.cur.alpha_t[0], np.append(nxt.alpha_t[:-1], np.sqrt(1 - sigma**2))),
            np.append(levels.cur.sigma_t[0], last),
        )
    )


@each_variant
@each_integrand
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_clean_end_is_a_limit(order, variant, integrand):
    """Rows of ever smaller last sigmas go to that of 0; the corrector of the step before is there whole."""
    exact = ended(0.0, order, variant=variant, integrand=integrand)
    assert np.isfinite(exact).all()
    for sigma in (1e-4, 1e-8, 1e-12):
        np.testing.assert_allclose(
            ended(sigma, order, variant=variant, integrand=integrand), exact, rtol=0, atol=20 * sigma + 1e-13
        )


@pytest.mark.parametrize("predicts", ["sample", "v_prediction", "flow_prediction"])
@each_variant
@each_integrand
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_pure_noise_is_a_limit(order, variant, integrand, predicts):
    """Rows of ever smaller first alphas go to those of 0, but for corrections that grow beyond bound: these are left out."""

    def plan(alpha, **options):
        levels = uneven(6, "vp", 2)
        alphas = np.concatenate([[alpha], levels.cur.alpha_t[1:], levels.nxt.alpha_t[-1:]])
        chain = Levels.chain(np.arange(7)[::-1], alphas, np.sqrt(1 - alphas**2))
        return UniPC(order, variant, integrand, **options).plan(chain, predicts)

    corrected = integrand == "x0" and variant == "bh2"
    exact = plan(0.0)
    assert np.isfinite(exact.update).all()
    assert (exact.update[1, 1, CORRECTED] != 0) == corrected
    options = {} if corrected else {"skip_corrector": (0,)}
    # The part of an estimate at λ -> -∞ in a later step falls as 1 / |λ|.
    distances = [abs(plan(10.0**-k, **options).folded - exact.folded).max() for k in (10, 40, 160)]
    assert (
        distances[2] <= 0.02
        and distances[1] <= 0.3 * distances[0] + 1e-12
        and distances[2] <= 0.3 * distances[1] + 1e-12
    )


@each_variant
@each_integrand
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("repeated", [1, 3, 5, 6])
def test_a_step_between_equal_levels_changes_nothing(order, variant, integrand, repeated):
    """And its two estimates count once: with right ones, the sample is right at every level."""
    whole = uneven(6, "vp", 3)
    alphas = np.append(whole.cur.alpha_t, whole.nxt.alpha_t[-1])
    sigmas = np.append(whole.cur.sigma_t, whole.nxt.sigma_t[-1])
    twice = np.insert(np.arange(7), repeated, repeated)
    levels = Levels(
        *(
            type(whole.cur)(np.arange(7.0)[::-1], alphas[part], sigmas[part])
            for part in (twice[:-1], twice[1:])
        )
    )
    plan = UniPC(order, variant, integrand, lower_order_final=False).plan(levels, "sample")
    assert np.isfinite(plan.update).all()
    x = np.linspace(-1, 1, 3)
    state = init(plan, x)
    for i in range(len(plan)):
        before = state
        state = update(plan, i, state, np.tanh(x + 0.1 * plan.sigma[i]))
        if i == repeated:
            np.testing.assert_array_equal(state.x, state.memory[0])
        elif i == repeated + 1:
            np.testing.assert_array_equal(state.memory[0], before.memory[0])
    noise = np.asarray([0.3, -0.8, 0.1])
    state = init(plan, plan.alpha[0] * x + plan.sigma[0] * noise)
    for i in range(len(plan)):
        state = update(plan, i, state, x)
        np.testing.assert_allclose(state.x, plan.alpha[i + 1] * x + plan.sigma[i + 1] * noise, atol=1e-10)


@pytest.mark.parametrize("steps", [*range(1, 40), 99, 250, 1000])
@each_integrand
def test_every_number_of_steps(steps, integrand):
    for levels in (
        Trailing().levels(VP(), steps),
        Karras().levels(VP(), steps),
        Trailing().levels(RectifiedFlow(), steps),
    ):
        for variant, order in (("bh1", 2), ("bh2", 3)):
            plan = UniPC(order, variant, integrand, lower_order_final=False).plan(levels, "flow_prediction")
            state = init(plan, np.ones(2) * plan.sigma[0])
            for i in range(len(plan)):
                state = update(plan, i, state, state.x * 0.1)
            assert np.isfinite(state.x).all()


def test_with_a_threshold_the_noise_is_made_of_the_bounded_estimate():
    levels = uneven(5)
    for integrand in ("x0", "noise"):
        plan = UniPC(2, integrand=integrand).plan(levels, "epsilon", Clip(0.5))
        x, output = np.full(1, 3.0 * plan.sigma[0]), np.full(1, 0.1)
        state = update(plan, 0, init(plan, x), output)
        bounded = np.clip((x - plan.sigma[0] * output) / plan.alpha[0], -0.5, 0.5)
        noise = (x - plan.alpha[0] * bounded) / plan.sigma[0]
        np.testing.assert_allclose(state.memory[1], bounded if integrand == "x0" else noise, rtol=1e-13)
        np.testing.assert_allclose(state.x, plan.alpha[1] * bounded + plan.sigma[1] * noise, rtol=1e-13)


# ---------------------------------------------------------------- order of convergence


MEAN, STD = 0.3, 0.6
STARTS = np.linspace(-2, 2, 5)
HIGH, LOW = 4.0, 0.2


def solution(ratio):
    """x / alpha for data N(MEAN, STD²), along the probability flow: no polynomial in λ."""
    return MEAN + STARTS * np.sqrt((STD**2 + ratio**2) / (STD**2 + HIGH**2)) * HIGH


def estimates(y, ratio):
    x0 = (STD**2 * y + ratio**2 * MEAN) / (STD**2 + ratio**2)
    return {"x0": x0, "noise": (y - x0) / ratio}


def grid(kind, steps):
    """Karras sigmas from HIGH to LOW; uneven ones keep the proportions of neighbouring steps as they get finer."""
    if kind == "alternating":
        widths = np.tile([1.0, 2.0], steps // 2)
    else:
        widths = np.ones(steps)
    u = np.append(0.0, np.cumsum(widths)) / widths.sum()
    if kind == "smooth":
        u = u + 0.3 * u * (1 - u)
    return np.exp(np.log(HIGH) + u * np.log(LOW / HIGH))


def error(sampler, kind, steps, given):
    """At the end; with the first `given` calls' memories taken from the solution, so that no start of low order counts."""
    ratios = grid(kind, steps)
    alpha = 1 / np.hypot(1, ratios)
    levels = Levels.chain(np.arange(steps + 1)[::-1], alpha, alpha * ratios)
    plan = sampler.plan(levels, "sample")
    start, memory = alpha[given] * solution(ratios[given]), ()
    if plan.memories:
        past = [estimates(solution(ratios[k]), ratios[k])[sampler.integrand] for k in range(given)][::-1]
        past += [start] * (plan.memories - len(past))
        before = alpha[max(given - 1, 0)] * solution(ratios[max(given - 1, 0)])
        memory = tuple([before] * sampler.corrector + past)[: plan.memories]
    state = State(start, memory)
    for i in range(given, steps):
        state = update(plan, i, state, estimates(state.x / alpha[i], ratios[i])["x0"])
    return np.abs(state.x / alpha[-1] - solution(LOW)).max()


def slopes(sampler, kind, given, counts=(128, 256, 512)):
    errors = [error(sampler, kind, steps, given) for steps in counts]
    return np.diff(np.log(errors)) / np.diff(np.log(counts)) * -1


each_grid = pytest.mark.parametrize("kind", ["even", "alternating", "smooth"])


@each_grid
@each_variant
@each_integrand
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_the_predictor(order, integrand, variant, kind):
    sampler = UniPC(order, variant, integrand, corrector=False, lower_order_final=False)
    assert sampler.order == order
    found = slopes(sampler, kind, given=order)
    assert abs(found[-1] - order) < 0.06, found


@each_grid
@each_variant
@each_integrand
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_with_the_corrector(order, integrand, variant, kind):
    sampler = UniPC(order, variant, integrand, lower_order_final=False)
    assert sampler.order == order + 1
    found = slopes(sampler, kind, given=order + 1)
    assert abs(found[-1] - order - 1) < 0.1, found


@each_integrand
@pytest.mark.parametrize(("corrector", "least"), [(False, 2), (True, 3)])
def test_order_of_a_run(integrand, corrector, least):
    """Begun without a history: the first step, of order 1 (2 when corrected), leaves an error of that order + 1 once.

    It is small beside what order 4 leaves: the slope for x̂₀ is still 3.4, and falls.
    """
    sampler = UniPC(3, "bh2", integrand, corrector, lower_order_final=False)
    found = slopes(sampler, "even", given=0, counts=(256, 512, 1024))
    assert least - 0.1 < found[-1] < least + 0.5, found


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"order_max": 0}, "order_max=0"),
        ({"order_max": 2.0}, "order_max=2.0"),
        ({"variant": "bh3"}, "variant='bh3': expected one of bh1, bh2"),
        ({"integrand": "v"}, "integrand='v': expected one of x0, noise"),
        ({"skip_corrector": (-1,)}, "skip_corrector=-1"),
        ({"skip_corrector": (0.5,)}, "skip_corrector=0.5"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(ValueError, match=message):
        UniPC(**parameters)


def test_equal_parameters_are_equal_samplers():
    assert UniPC(skip_corrector=[3, 1, 3]) == UniPC(skip_corrector=(1, 3))
    assert hash(UniPC(skip_corrector=[1])) == hash(UniPC(skip_corrector={1}))
    assert math.isclose(UniPC(2).order, 3)
