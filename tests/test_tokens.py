"""Token steps against equation 11 written out with matrices, identities, statistics of the draws, every array library."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from anystep import MaskAndReplace, VQDiffusionScheduler
from anystep.schedules.vq import Transition
from anystep.tokens import (
    add_token_noise,
    apply_transition,
    gumbel_max,
    log_one_hot,
    log_transition_to,
    mixture,
    q_posterior,
    sample_race,
    sample_sparse,
)
from anystep_conformance.libraries import LIBRARIES, cases, library

PROCESSES = {
    "defaults": MaskAndReplace(6),
    "one class": MaskAndReplace(2),
    "the paper's ends": MaskAndReplace(6, 100, 0.99999, 9e-6, 9e-6, 0.9),
    "much replacement": MaskAndReplace(6, 20, 0.9, 0.1, 9e-6, 0.2),
    "no mask": MaskAndReplace(6, 20, 0.9, 0.1, 0.0, 0.0),
    "no replacement": MaskAndReplace(6, 20, 0.75, 0.25, 0.25, 0.75),
    "clean at first, no replacement": MaskAndReplace(6, 20, 1.0, 0.0, 0.0, 1.0),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
STEPS = [(19, 18), (10, 9), (1, 0), (19, 3), (12, -1)]


def random_case(process, cur, seed=0, shape=(3, 8)):
    """Normalised log-probabilities, and tokens of which half are masks (none where nothing is masked)."""
    rng = np.random.default_rng(seed)
    classes = process.classes - 1
    logits = 2 * rng.standard_normal((shape[0], classes, shape[1]))
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    log_a, _, log_c = process.transition(-1, cur)
    masks = 0.5 if log_c > -math.inf else 0.0
    masks = masks if log_a > -math.inf else 1.0  # what is impossible is not asked for
    return log_p, np.where(rng.random(shape) < masks, classes, rng.integers(0, classes, shape))


# --- an independent reference: equations 5, 7 and 11 as they stand, in 50 digits ---


def exact_tables(process):
    """(ā, b̄, c̄) of the T timesteps and of the clean sample, from the definition, in mpmath."""
    count, classes = process.train_timesteps, process.classes - 1
    with mpmath.workdps(50):
        tables = []
        for t in range(count):
            along = mpmath.mpf(t) / (count - 1)
            alpha, gamma = (
                mpmath.mpf(start) * (1 - along) + mpmath.mpf(end) * along
                for start, end in (
                    (process.alpha_cum_start, process.alpha_cum_end),
                    (process.gamma_cum_start, process.gamma_cum_end),
                )
            )
            tables.append((alpha, (1 - alpha - gamma) / classes, gamma))
        return [*tables, (mpmath.mpf(1), mpmath.mpf(0), mpmath.mpf(0))]


def exact_single(process, t):
    """(a, b, c) of the step t - 1 -> t: equation 8 solved for them."""
    tables = exact_tables(process)
    with mpmath.workdps(50):
        (a_cur, _, c_cur), (a_nxt, _, c_nxt) = tables[t], tables[t - 1]
        a, c = a_cur / a_nxt, 1 - (1 - c_cur) / (1 - c_nxt)
        return a, (1 - a - c) / (process.classes - 1), c


def matrix(a, b, c, classes):
    """Equation 7, rows from, columns to; the mask stays."""
    table = mpmath.matrix(classes, classes)
    for i in range(classes - 1):
        for j in range(classes - 1):
            table[i, j] = b + (a if i == j else 0)
        table[i, classes - 1] = c
    table[classes - 1, classes - 1] = mpmath.mpf(1)
    return table


@functools.cache
def exact_matrices(process, cur, nxt):
    """(0 -> cur, 0 -> nxt, nxt -> cur), the last as a product of single steps."""
    with mpmath.workdps(50):
        tables, size = exact_tables(process), process.classes
        one = mpmath.eye(size)
        for t in range(nxt + 1, cur + 1):
            one = one * matrix(*exact_single(process, t), size)
        return matrix(*tables[cur], size), matrix(*tables[nxt], size), one


def brute_force(process, cur, nxt, p, x):
    """Σ over x_0 of q(x | j) q(j | x_0) p(x_0) / q(x | x_0) for each j; a class x_0 that x cannot come from is left out."""
    to_cur, to_nxt, one = exact_matrices(process, cur, nxt)
    size = process.classes
    with mpmath.workdps(50):
        weights = [
            mpmath.fsum(
                one[j, x] * to_nxt[k, j] * mpmath.mpf(float(p[k])) / to_cur[k, x]
                for k in range(size - 1)
                if to_cur[k, x] > mpmath.mpf(10) ** -30
            )
            for j in range(size)
        ]
        return np.array([float(weight) for weight in weights])


@pytest.mark.parametrize(("cur", "nxt"), STEPS)
@processes
def test_q_posterior_is_equation_11(process, cur, nxt):
    log_p, x = random_case(process, cur, shape=(2, 4))
    posterior = np.exp(q_posterior(log_p, x, process.step(cur, nxt)))
    for b, i in np.ndindex(x.shape):
        expected = brute_force(process, cur, nxt, np.exp(log_p[b, :, i]), int(x[b, i]))
        np.testing.assert_allclose(posterior[b, :, i], expected, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize(("cur", "nxt"), STEPS)
@processes
def test_posterior_sums_to_one(process, cur, nxt):
    log_p, x = random_case(process, cur)
    total = np.exp(q_posterior(log_p, x, process.step(cur, nxt))).sum(axis=1)
    if process.step(cur, nxt).cur.log_b == -math.inf:  # only p(x_0 = x_cur) is possible of what is seen
        p = np.exp(np.take_along_axis(log_p, np.minimum(x, 4)[:, None], axis=1))[:, 0]
        total = np.where(x == 5, total, total / p)
    np.testing.assert_allclose(total, 1, rtol=1e-13)


@pytest.mark.parametrize("floor", [0.0, 1e-30])
def test_sums_are_carried_through(floor):
    process = PROCESSES["much replacement"]
    log_p, x = random_case(process, 9)
    one, other = (q_posterior(log_p + shift, x, process.step(9, 8), floor=floor) for shift in (0.0, 7.5))
    held = np.isfinite(one)
    np.testing.assert_allclose(other[held] - one[held], 7.5, rtol=1e-12)


# --- tables and matrices ---


@processes
def test_tables_agree_with_fifty_digits(process):
    """Relative error at most 1e-13 also where 1 - a - c is a millionth or less, where diffusers' formula loses ten digits."""
    count = process.train_timesteps
    tables = exact_tables(process)
    for t in {0, 1, count // 2, count - 1}:
        single = exact_single(process, t)
        for found, exact in [
            *zip((part[t] for part in process.single), single, strict=True),
            *zip((part[t] for part in process.cumulative), tables[t], strict=True),
        ]:
            # The probabilities that are given need not sum to one in float64: 0.1 + 0.9 does not.
            assert abs(found - float(exact)) <= 1e-13 * float(abs(exact)) + 1e-16 * (
                float(abs(exact)) < 1e-15
            ), (t, found, exact)


@processes
def test_rows_sum_to_one(process):
    for start, end in [(-1, 0), (-1, 7), (0, 1), (3, 17), (18, 19)]:
        np.testing.assert_allclose(process.matrix(start, end).sum(axis=1), 1, rtol=2e-14)


@processes
def test_cumulative_is_the_product_of_single_steps(process):
    product = np.eye(process.classes)
    for t in range(process.train_timesteps):
        a, b, c = (table[t] for table in process.single)
        single = np.full((process.classes, process.classes), b) + a * np.eye(process.classes)
        single[:, -1], single[-1] = c, np.eye(process.classes)[-1]
        product = product @ single
        np.testing.assert_allclose(process.matrix(-1, t), product, rtol=1e-11, atol=1e-17)
    np.testing.assert_allclose(
        process.matrix(-1, 4) @ process.matrix(4, 11), process.matrix(-1, 11), rtol=1e-12, atol=1e-17
    )


def test_a_transition_to_itself_is_none():
    assert (MaskAndReplace(4).matrix(7, 7) == np.eye(4)).all()
    with pytest.raises(ValueError, match="start=8, end=7: expected -1 <= start <= end <= 99"):
        MaskAndReplace(4).transition(8, 7)


@processes
@pytest.mark.parametrize("cumulative", [False, True])
def test_log_transition_to_is_a_column(process, cumulative):
    x = np.arange(process.classes)[None]
    hot = log_one_hot(x, process.classes, np.zeros(1))
    assert (np.exp(hot[0]) == np.eye(process.classes)).all()
    found = np.exp(
        log_transition_to(x, hot, process.transition(-1 if cumulative else 6, 7), cumulative=cumulative)
    )
    expected = process.matrix(-1 if cumulative else 6, 7)
    np.testing.assert_allclose(found[0], expected[: process.classes - cumulative], rtol=1e-13)


@processes
def test_apply_transition_is_a_row_times_the_matrix(process):
    log_p, _ = random_case(process, 5)
    found = np.exp(apply_transition(log_p, process.transition(-1, 5)))
    expected = np.einsum("bkl,kj->bjl", np.exp(log_p), process.matrix(-1, 5)[:-1])
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-300)


def test_a_number_per_sample_is_one_step_per_sample():
    """Transitions gathered from the tables on the device, at a timestep per sample or a traced one."""
    process = MaskAndReplace(6)
    log_p, x = random_case(process, 9)
    hot, ts = log_one_hot(x, 6, log_p), np.array([50, 3, 99])
    for table, cumulative in ((process.log_single, False), (process.log_cumulative, True)):
        rows = log_transition_to(x, hot, Transition(*(part[ts] for part in table)), cumulative=cumulative)
        for b, t in enumerate(ts):
            entry = Transition(*(float(part[t]) for part in table))
            alone = log_transition_to(x[b : b + 1], hot[b : b + 1], entry, cumulative=cumulative)
            np.testing.assert_allclose(rows[b : b + 1], alone, rtol=1e-13)
    tables = [jnp.asarray(part, jnp.float32) for part in process.log_cumulative]
    traced = jax.jit(lambda q, t: apply_transition(q, Transition(*(part[t] for part in tables))))
    q = jnp.asarray(log_p, jnp.float32)
    np.testing.assert_allclose(traced(q, 50), apply_transition(q, process.transition(-1, 50)), rtol=1e-5)


# --- the draws ---


@processes
@pytest.mark.parametrize(("cur", "nxt"), STEPS)
@given(seed=st.integers(0, 2**32))
def test_the_race_is_won_by_gumbel_max(process, cur, nxt, seed):
    log_p, x = random_case(process, cur, seed)
    step, rng = process.step(cur, nxt), np.random.default_rng(seed)
    posterior = q_posterior(log_p, x, step)
    uniform = rng.random(posterior.shape)
    assert (sample_race(log_p + rng.normal(), x, step, uniform) == gumbel_max(posterior, uniform)).all()
    last = uniform[:, :-1]
    assert (sample_race(log_p, x, None, last) == gumbel_max(log_p, last)).all()


def as_distribution(log_p, x, step):
    """The distribution that the weights of the mixture stand for, shape (B, K + 1, L)."""
    weights, classes = mixture(log_p, x, step), log_p.shape[1]
    p = np.exp(log_p) / np.exp(log_p).sum(axis=1, keepdims=True)
    parts = weights.even[:, None] / classes + weights.model[:, None] * p
    whole = np.concatenate([parts, np.zeros_like(parts[:, :1])], axis=1)
    return whole + weights.stays[:, None] * np.exp(log_one_hot(x, classes + 1, log_p)), weights


@processes
@pytest.mark.parametrize(("cur", "nxt"), STEPS)
@given(seed=st.integers(0, 2**32))
def test_the_mixture_is_the_posterior(process, cur, nxt, seed):
    """Total variation at most 1e-14."""
    log_p, x = random_case(process, cur, seed)
    step = process.step(cur, nxt)
    found, weights = as_distribution(log_p + 3.0, x, step)
    expected = np.exp(q_posterior(log_p, x, step))
    if step.cur.log_b == -math.inf:
        expected = expected / expected.sum(axis=1, keepdims=True)
    assert 0.5 * np.abs(found - expected).sum(axis=1).max() <= 1e-14
    assert min(weight.min() for weight in weights) >= 0
    np.testing.assert_allclose(sum(weights), 1, rtol=1e-14)


def chi_square(counts, expected):
    """Probability of a statistic at least this large; cells with an expectation under 5 are taken together."""
    order = np.argsort(expected)
    small = order[np.cumsum(expected[order]) < 5]
    large = np.setdiff1d(order, small)
    pairs = [(counts[i], expected[i]) for i in large] + [(counts[small].sum(), expected[small].sum())] * bool(
        small.size
    )
    pairs = [(n, e) for n, e in pairs if e > 0 or n]
    statistic = sum((n - e) ** 2 / e for n, e in pairs)
    return 1.0 if len(pairs) == 1 else chi2.sf(statistic, len(pairs) - 1)


DRAWS = 200_000
WAYS = {
    "sparse": lambda log_p, x, step, rng: sample_sparse(
        log_p, x, step, rng.random((1, 2, DRAWS), dtype=np.float32)
    ),
    "dense": lambda log_p, x, step, rng: sample_sparse(log_p, x, step, rng.random((1, 2, DRAWS)), dense=True),
    "race": lambda log_p, x, step, rng: sample_race(
        log_p, x, step, rng.random((1, log_p.shape[1] + 1, DRAWS), dtype=np.float32)
    ),
    "Gumbel": lambda log_p, x, step, rng: gumbel_max(
        q_posterior(log_p, x, step), rng.random((1, log_p.shape[1] + 1, DRAWS), dtype=np.float32)
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["defaults", "the paper's ends", "much replacement"])
@pytest.mark.parametrize("seen", [5, 2], ids=["mask", "class"])
def test_draws_have_the_posteriors_frequencies(way, name, seen):
    """Chi-square of 2e5 draws: 48 cases, so a p-value of 1e-4 is no wonder and one of 1e-6 is a fault."""
    process = PROCESSES[name]
    step = process.step(15, 9)
    p = np.array([0.5, 0.02, 0.3, 0.03, 0.15])
    expected = brute_force(process, 15, 9, p, seen)
    log_p = np.broadcast_to(np.log(p)[None, :, None].astype(np.float32), (1, 5, DRAWS))
    drawn = WAYS[way](log_p, np.full((1, DRAWS), seen), step, np.random.default_rng(0))
    assert chi_square(np.bincount(drawn[0], minlength=6), DRAWS * expected) > 1e-5


def test_a_slightly_wrong_distribution_fails_the_chi_square():
    expected = np.array([0.2, 0.3, 0.5]) * DRAWS
    assert chi_square(expected + np.array([1000, -1000, 0]), expected) < 1e-6
    assert chi_square(np.array([0, 5.0]), np.array([0.0, 5.0])) == 1.0


def test_draws_of_the_last_step_have_the_models_frequencies():
    p = np.array([0.5, 0.0, 0.3, 0.05, 0.15])
    with np.errstate(divide="ignore"):
        log_p = np.broadcast_to(np.log(p)[None, :, None], (1, 5, DRAWS))
    x, rng = np.full((1, DRAWS), 5), np.random.default_rng(1)
    for drawn in (
        sample_sparse(log_p + 3, x, None, rng.random((1, 2, DRAWS))),
        sample_race(log_p, x, None, rng.random(log_p.shape)),
    ):
        counts = np.bincount(drawn[0], minlength=5)
        assert counts[1] == 0 and chi_square(counts, DRAWS * p) > 1e-5


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-24, 1 - 2.0**-53])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_ends_of_the_uniform_numbers_draw_possible_classes(uniform, dtype):
    process = PROCESSES["much replacement"]
    log_p = np.array([-np.inf, -1.0, -np.inf, -2.0, -np.inf], dtype)[None, :, None]
    for seen in (5, 1):
        x = np.array([[seen]])
        number = np.full((1, 2, 1), min(uniform, 1 - np.finfo(dtype).epsneg), dtype)
        for dense in (True, False):
            assert sample_sparse(log_p, x, None, number, dense=dense)[0, 0] in (1, 3)
            assert 0 <= sample_sparse(log_p, x, process.step(9, 8), number, dense=dense)[0, 0] <= 5
        race = np.full((1, 6, 1), number[0, 0, 0], dtype)
        assert 0 <= sample_race(log_p, x, process.step(9, 8), race)[0, 0] <= 5


@processes
@pytest.mark.parametrize(("cur", "nxt"), STEPS)
def test_dense_and_sparse_draw_the_same(process, cur, nxt):
    log_p, x = random_case(process, cur, shape=(4, 50))
    uniform = np.random.default_rng(0).random((4, 2, 50))
    one, other = (
        sample_sparse(log_p, x, process.step(cur, nxt), uniform, dense=dense) for dense in (True, False)
    )
    assert (one == other).all()
    assert cur - nxt == 1 or (one != x).any()


def test_sparse_reads_only_what_changes():
    """NaN in every column but those that the uniform numbers choose: the draw does not see them."""
    process = MaskAndReplace(6)
    log_p, x = random_case(process, 50, shape=(4, 50))
    uniform = np.random.default_rng(0).random((4, 2, 50))
    step = process.step(50, 49)
    weights = mixture(log_p, x, step)
    chosen = uniform[:, 0] >= weights.stays - 1e-6  # nothing but the sure part is known without the model
    assert 0 < chosen.mean() < 0.1
    hidden = np.where(chosen[:, None], log_p, np.nan)
    assert (
        sample_sparse(hidden, x, step, uniform, dense=False) == sample_sparse(log_p, x, step, uniform)
    ).all()
    untouched = sample_sparse(np.full_like(log_p, np.nan), x, step, np.zeros((4, 2, 50)), dense=False)
    assert (untouched == x).all()


# --- whole chains ---

P0 = np.array([0.4, 0.1, 0.25, 0.05, 0.2])


def posterior_of_data(process, x, t):
    """The exact model for tokens that are independent with p(x_0) = P0: Bayes' rule."""
    joint = P0[:, None] * process.matrix(-1, t)[:-1]
    return np.log((joint / joint.sum(axis=0))[:, x].transpose(1, 0, 2))


@pytest.mark.parametrize("name", ["the paper's ends", "much replacement", "defaults"])
@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_chain_ends_at_the_data(name, steps, sparse):
    """Started from q(x_T), with the exact model, the marginal at the end and on the way is the forward one: 1e5 chains."""
    ends = PROCESSES[name]
    config = {
        f"{part}_cum_{end}": getattr(ends, f"{part}_cum_{end}")
        for part in ("alpha", "gamma")
        for end in ("start", "end")
    }
    scheduler = VQDiffusionScheduler(6, num_train_timesteps=20, **config).corrected("vq-respacing")
    scheduler.set_timesteps(steps)
    process = scheduler.process
    scheduler = scheduler.sparse() if sparse else scheduler
    rng = np.random.default_rng(5)
    x = rng.choice(6, size=(100, 1000), p=P0 @ process.matrix(-1, 19)[:-1])
    ends = [*scheduler.timesteps[1:].tolist(), -1]
    for t, nxt in zip(scheduler.timesteps, ends, strict=True):
        log_p = posterior_of_data(process, x, int(t))
        x = scheduler.step(log_p, t, x, generator=rng).prev_sample
        marginal = P0 @ process.matrix(-1, nxt)[:-1] if nxt >= 0 else np.append(P0, 0)
        assert chi_square(np.bincount(x.ravel(), minlength=6), x.size * marginal) > 1e-5, nxt
    assert x.max() < 5


def test_forward_noise_has_the_cumulative_frequencies():
    process = PROCESSES["the paper's ends"]
    x0 = np.full((1, DRAWS), 3)
    x = add_token_noise(x0, process.transition(-1, 60), np.random.default_rng(0).random((1, 2, DRAWS)), 6)
    assert x.dtype == x0.dtype
    assert chi_square(np.bincount(x[0], minlength=6), DRAWS * process.matrix(-1, 60)[3]) > 1e-5


# --- array libraries ---


def everything(entry, dtype):
    """Each function on a library's arrays, read back."""
    process = MaskAndReplace(6)
    log_p, x = random_case(process, 50)
    step, rng = process.step(50, 49), np.random.default_rng(2)
    number = "float64" if dtype == "float64" else "float32"
    u_classes, u_last, u_two = (
        rng.random(shape).astype(np.float32) for shape in ((3, 6, 8), (3, 5, 8), (3, 2, 8))
    )
    with entry.scope(dtype):
        lp, tokens = entry.array(log_p, dtype), entry.index(x)
        six, five, two = (entry.array(u, number) for u in (u_classes, u_last, u_two))
        hot = log_one_hot(tokens, 6, lp)
        results = {
            "hot": hot,
            "column": log_transition_to(tokens, hot, step.one, cumulative=False),
            "cumulative": log_transition_to(tokens, hot, step.cur, cumulative=True),
            "applied": apply_transition(lp, step.nxt),
            "posterior": q_posterior(lp, tokens, step),
            "floored": q_posterior(lp, tokens, step, floor=1e-30),
            "race": sample_race(lp, tokens, step, six),
            "last race": sample_race(lp, tokens, None, five),
            "Gumbel": gumbel_max(q_posterior(lp, tokens, step), six),
            "sparse": sample_sparse(lp, tokens, step, two),
            "dense": sample_sparse(lp, tokens, step, two, dense=True),
            "last sparse": sample_sparse(lp, tokens, None, two),
            "noised": add_token_noise(entry.index(np.minimum(x, 4)), step.cur, two, 6),
            **{f"weight {i}": weight for i, weight in enumerate(mixture(lp, tokens, step))},
        }
        for name, result in results.items():
            assert type(result) is type(lp), name
            assert str(getattr(result, "device", "")) == str(getattr(lp, "device", "")), name
        for name in ("race", "last race", "sparse", "dense", "last sparse", "noised"):
            assert results[name].dtype == tokens.dtype, name
        return {name: np.asarray(entry.read(result), np.float64) for name, result in results.items()}


@pytest.mark.parametrize(("entry", "dtype"), cases(names=[entry.name for entry in LIBRARIES]))
def test_same_on_every_library(entry, dtype):
    """Logarithms differ by some units in the last place between libraries; tokens do not differ."""
    found, expected = everything(entry, dtype), everything(library("numpy"), dtype)
    for name, values in found.items():
        if name in ("race", "last race", "Gumbel", "sparse", "dense", "last sparse", "noised"):
            assert (values == expected[name]).all(), name
        else:
            # half precision is computed in float32; 5e-6 is 2 units in the last place at 21 = -log b
            bound = 1e-13 if dtype == "float64" else 5e-6
            np.testing.assert_allclose(values, expected[name], rtol=bound, atol=bound, err_msg=name)


def test_sparse_where_shapes_may_depend_on_data():
    """The list's array_api_strict has them turned off; here they are on."""
    import array_api_strict as xp

    process = MaskAndReplace(6)
    log_p, x = random_case(process, 50)
    uniform = np.random.default_rng(2).random((3, 2, 8))
    for device in (xp.Device("CPU_DEVICE"), xp.Device("device1")):
        arrays = (xp.asarray(array, device=device) for array in (log_p, x))
        found = sample_sparse(*arrays, process.step(50, 20), xp.asarray(uniform, device=device), dense=False)
        assert found.device == device
        expected = sample_sparse(log_p, x, process.step(50, 20), uniform)
        assert (np.asarray(found.to_device(xp.Device("CPU_DEVICE"))) == expected).all()
        assert (expected != x).any()


def test_under_jit():
    process = MaskAndReplace(6)
    log_p, x = random_case(process, 50)
    step, rng = process.step(50, 30), np.random.default_rng(2)
    lp, tokens = jnp.asarray(log_p, jnp.float32), jnp.asarray(x, jnp.int32)
    six, two = (jnp.asarray(rng.random(shape), jnp.float32) for shape in ((3, 6, 8), (3, 2, 8)))
    for function, uniform in ((sample_race, six), (sample_sparse, two)):
        drawn = jax.jit(lambda lp, x, u, function=function: function(lp, x, step, u))(lp, tokens, uniform)
        assert (drawn == function(lp, tokens, step, uniform)).all() and drawn.dtype == jnp.int32
    posterior = jax.jit(lambda lp, x: q_posterior(lp, x, step))(lp, tokens)
    np.testing.assert_allclose(posterior, q_posterior(lp, tokens, step), rtol=1e-5)
    weights = jax.jit(lambda lp, x: mixture(lp, x, step))(lp, tokens)
    np.testing.assert_allclose(sum(weights), 1, rtol=1e-6)
    scheduler = VQDiffusionScheduler(6)
    key = jax.random.key(0)
    for each in (scheduler, scheduler.sparse()):
        stepped = jax.jit(lambda lp, x, key, each=each: each.step(lp, 50, x, generator=key).prev_sample)
        assert (stepped(lp, tokens, key) == each.step(lp, 50, tokens, generator=key).prev_sample).all()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("entry", "dtype"), cases(["float32", "float64"]))
def test_a_seed_of_numpys_is_one_image_everywhere(entry, dtype, sparse):
    def run(entry):
        scheduler, rng = VQDiffusionScheduler(6), np.random.default_rng(4)
        scheduler = scheduler.sparse() if sparse else scheduler
        log_p, x = random_case(scheduler.process, 50, shape=(2, 30))
        with entry.scope(dtype):
            lp, x = entry.array(log_p, dtype), entry.seal(entry.index(x))
            for t in (99, 60, 30, 1, 0):
                x = entry.seal(scheduler.step(lp, t, x, generator=rng).prev_sample)
            return np.asarray(entry.read(x))

    assert (run(entry) == run(library("numpy"))).all()


def test_a_generator_per_sample():
    scheduler = VQDiffusionScheduler(6)
    log_p, x = random_case(scheduler.process, 50)
    for each in (scheduler, scheduler.sparse()):
        listed = each.step(log_p, 50, x, generator=[np.random.default_rng(i) for i in range(3)]).prev_sample
        for b in range(3):
            alone = each.step(
                log_p[b : b + 1], 50, x[b : b + 1], generator=np.random.default_rng(b)
            ).prev_sample
            assert (listed[b : b + 1] == alone).all()


@pytest.mark.parametrize("sparse", [False, True])
def test_nothing_is_read_from_the_device(sparse):
    """On PyTorch's meta device every attempt to read a value raises."""
    scheduler = VQDiffusionScheduler(6)
    scheduler = scheduler.sparse() if sparse else scheduler
    scheduler.set_timesteps(5, device=torch.device("meta"))
    x = torch.zeros((2, 7), dtype=torch.int64, device="meta")
    for t in scheduler.timesteps:
        x = scheduler.step(torch.zeros((2, 5, 7), device="meta"), t, x).prev_sample
        scheduler.q_posterior(torch.zeros((2, 5, 7), device="meta"), x, t)
    assert x.device.type == "meta" and x.shape == (2, 7)


def test_inputs_are_not_written_to():
    scheduler = VQDiffusionScheduler(6)
    log_p, x = random_case(scheduler.process, 50)
    log_p.flags.writeable = x.flags.writeable = False
    for each in (scheduler, scheduler.sparse()):
        drawn = each.step(log_p, 50, x, generator=np.random.default_rng(0)).prev_sample
        assert drawn.shape == x.shape and drawn.dtype == x.dtype


def test_interleaved_clones_do_not_meet():
    scheduler = VQDiffusionScheduler(6)
    scheduler.set_timesteps(8)
    log_p, x = random_case(scheduler.process, 7)
    clone, sparse, right = scheduler.clone(), scheduler.sparse(), scheduler.corrected()
    right.set_timesteps(3)
    clone.set_timesteps(4)
    sparse.set_timesteps(2)
    assert [len(each.timesteps) for each in (scheduler, clone, sparse, right)] == [8, 4, 2, 3]
    expected = scheduler.step(log_p, 7, x, generator=np.random.default_rng(0)).prev_sample
    for each in (sparse, right, clone):
        each.step(log_p, each.timesteps[0], x, generator=np.random.default_rng(0))
    assert (scheduler.step(log_p, 7, x, generator=np.random.default_rng(0)).prev_sample == expected).all()
    assert (clone.step(log_p, 7, x, generator=np.random.default_rng(0)).prev_sample == expected).all()
    assert clone._steps is not scheduler._steps and right._steps is not scheduler._steps


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_any_integer_dtype(dtype):
    scheduler = VQDiffusionScheduler(6)
    log_p, x = random_case(scheduler.process, 50)
    drawn = scheduler.step(log_p, 50, x.astype(dtype), generator=np.random.default_rng(0)).prev_sample
    assert drawn.dtype == dtype
    assert (drawn == scheduler.step(log_p, 50, x, generator=np.random.default_rng(0)).prev_sample).all()
    sparse = (
        scheduler.sparse().step(log_p, 50, x.astype(dtype), generator=np.random.default_rng(0)).prev_sample
    )
    assert sparse.dtype == dtype


def test_many_classes_and_no_batch():
    scheduler = VQDiffusionScheduler(3000)
    log_p = np.full((2, 2999, 3), -np.log(2999.0), np.float32)
    x = np.full((2, 3), 2999)
    for each in (scheduler, scheduler.sparse()):
        assert each.step(log_p, 0, x, generator=np.random.default_rng(0)).prev_sample.max() < 2999
        assert each.step(log_p[:0], 5, x[:0], generator=np.random.default_rng(0)).prev_sample.shape == (0, 3)
