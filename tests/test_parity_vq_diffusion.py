"""`VQDiffusionScheduler` beside diffusers' and beside diffusers' in float64: tables, methods, draws, loops.

Tokens are integers, so a loop is the same or it is not: the draws of a whole loop are compared for equality. What rounding can
move is the log-probabilities; their distance is relative to the largest finite one, which is where float32 rounds.
"""

import math
import sys

import numpy as np
import pytest
import torch

from anystep import VQDiffusionScheduler
from anystep.tokens import log_one_hot
from reference.float64_diffusers import float64_class
from reference.trajectories import original

NAME = "VQDiffusionScheduler"
STEPS = (1, 2, 5, 20, 50)
ULP = float(torch.finfo(torch.float32).eps)
CONFIGS = {
    "defaults": {"num_vec_classes": 18},
    "one class and the mask": {"num_vec_classes": 2},
    "many classes": {"num_vec_classes": 300},
    "the paper's ends": {
        "num_vec_classes": 9,
        "alpha_cum_start": 1 - 1e-5,
        "alpha_cum_end": 9e-6,
        "gamma_cum_end": 0.9,
    },
    "clean at first": {
        "num_vec_classes": 9,
        "alpha_cum_start": 1.0,
        "gamma_cum_start": 0.0,
        "gamma_cum_end": 0.9,
    },
    "much replacement": {
        "num_vec_classes": 9,
        "alpha_cum_start": 0.9,
        "alpha_cum_end": 0.1,
        "gamma_cum_end": 0.2,
    },
    "50 timesteps": {"num_vec_classes": 9, "num_train_timesteps": 50},
    "1000 timesteps": {"num_vec_classes": 9, "num_train_timesteps": 1000},
    # Powers of two, so that diffusers' 1 - a - c is 0 and not a negative number nearby, whose logarithm is NaN.
    "no replacement": {
        "num_vec_classes": 9,
        "num_train_timesteps": 5,
        "alpha_cum_start": 0.75,
        "alpha_cum_end": 0.25,
        "gamma_cum_start": 0.25,
        "gamma_cum_end": 0.75,
    },
}
LOOPS = [
    pytest.param(config, steps, id=f"{name}-{steps}")
    for name, config in CONFIGS.items()
    for steps in STEPS
    if steps <= config.get("num_train_timesteps", 100)
]
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def model(config, x, t, kind=torch.float32, form="normalised"):
    """Log-probabilities that depend on all tokens and the timestep, float64 and then cast, shape (B, K, L)."""
    classes = config["num_vec_classes"] - 1
    logits = torch.arange(classes, dtype=torch.float64)[None, :, None]
    seen = x.double()[:, None, :]
    logits = 4 * torch.sin(1.3 * logits + 0.7 * seen.roll(1, 2) + 0.2 * t) - 0.1 * (logits - seen) ** 2
    log_p = torch.log_softmax(logits, 1)
    if form == "scaled":
        log_p = log_p + 30
    elif form == "truncated":  # as the pipeline does with improbable classes
        log_p = torch.where(log_p < -3, -70.0, log_p)
    return log_p.to(kind)


def tokens(config, seed, shape=(3, 40)):
    """Tokens of which half are masks."""
    generator = torch.Generator().manual_seed(seed)
    mask = config["num_vec_classes"] - 1
    x = torch.randint(mask, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, mask, x)


def ours(config, device="cpu"):
    scheduler = VQDiffusionScheduler(**config)
    return scheduler if device is None else scheduler.to(torch.device(device))


def check(mine, theirs, exact):
    """Within 1e-5 of diffusers, and no farther from the oracle than it but for rounding; returns the distances."""
    for other in (theirs, exact):
        assert torch.equal(torch.isneginf(mine), torch.isneginf(other))
        assert not torch.isnan(other).any()
    held = torch.isfinite(exact)
    if not held.any():
        return 0.0, 0.0, 0.0
    scale = max(1.0, float(exact[held].abs().max()))
    apart, error, other = (
        float((a.double() - b.double())[held].abs().max()) / scale
        for a, b in ((mine, theirs), (mine, exact), (theirs, exact))
    )
    assert apart <= 1e-5, (apart, error, other)
    assert error <= 1.05 * other + 2 * ULP, (apart, error, other)
    return apart, error, other


def cancelled(probability):
    """How far off diffusers' own logarithm is in float64: differences are rounded at 1, and 1 - a - c may leave 1e-8."""
    return 4 * np.finfo(np.float64).eps / probability


# --- tables ---


@configs
@pytest.mark.parametrize(
    "name", ["log_at", "log_bt", "log_ct", "log_cumprod_at", "log_cumprod_bt", "log_cumprod_ct"]
)
def test_tables(config, name):
    theirs, exact = getattr(original(NAME)(**config), name), getattr(float64_class(NAME)(**config), name)
    mine = getattr(ours(config, None), name)
    assert mine.dtype == np.float64 and mine.shape == tuple(theirs.shape)
    found, wanted = torch.tensor(mine), exact.clone()
    # Where replacement is 0 diffusers' 1 - a - c may be a rounding error of 1 instead.
    rest = wanted < math.log(1e-15)
    assert (found[rest] < math.log(1e-15)).all()
    found, wanted, theirs = (table.double()[~rest] for table in (found, wanted, theirs))
    # A step's probability is a quotient of cumulative ones and has their errors: the smallest has the largest.
    column = ours(config, None).process.cumulative["abc".index(name[-2])]
    least = min([1.0, *column[column > 1e-15], *torch.exp(found).tolist()])
    allowed = cancelled(least * (config["num_vec_classes"] - 1 if "bt" in name else 1))
    assert ((found == wanted) | ((found - wanted).abs() <= allowed)).all()
    assert ((found == theirs) | ((found - theirs).abs() <= ULP * theirs.abs() + allowed)).all()
    moved = getattr(ours(config), name)
    assert moved.dtype == torch.float32 and torch.equal(moved[: len(mine)], torch.tensor(mine).float())


@configs
def test_timesteps_and_attributes(config):
    mine, theirs = ours(config, None), original(NAME)(**config)
    assert np.array_equal(mine.timesteps, theirs.timesteps)
    assert (mine.num_embed, mine.mask_class, mine.order) == (
        theirs.num_embed,
        theirs.mask_class,
        theirs.order,
    )
    assert mine.num_inference_steps is theirs.num_inference_steps is None
    for steps in range(1, config.get("num_train_timesteps", 100) + 1):
        mine.set_timesteps(steps, device="cpu")
        theirs.set_timesteps(steps, device="cpu")
        assert (
            torch.equal(mine.timesteps, theirs.timesteps) and mine.timesteps.dtype == theirs.timesteps.dtype
        )
        assert mine.num_inference_steps == theirs.num_inference_steps == steps


def test_config():
    mine, theirs = ours({"num_vec_classes": 9}), original(NAME)(num_vec_classes=9)
    names = [name for name in dict(theirs.config) if not name.startswith("_")]
    assert {name: mine.config[name] for name in names} == {name: theirs.config[name] for name in names}
    assert VQDiffusionScheduler.from_config(theirs.config).mask_class == 8
    assert original(NAME).from_config(dict(mine.config)).mask_class == 8


# --- methods ---


@configs
@pytest.mark.parametrize("form", ["normalised", "scaled", "truncated"])
def test_q_posterior(config, form):
    train = config.get("num_train_timesteps", 100)
    mine, theirs, exact = ours(config), original(NAME)(**config), float64_class(NAME)(**config)
    for t in sorted({0, 1, 2, train // 2, train - 1}):
        if t == 0 and config.get("gamma_cum_start") == 0.0:
            continue  # no token can be masked: diffusers divides by 0
        x = tokens(config, t)
        log_p = model(config, x, t, form=form)
        found = mine.q_posterior(log_p, x, t)
        assert found.dtype == torch.float32 and found.shape == (3, config["num_vec_classes"], 40)
        check(found, theirs.q_posterior(log_p, x, t), exact.q_posterior(log_p.double(), x, t))
        double = mine.q_posterior(log_p.double(), x, t)
        wanted = exact.q_posterior(log_p.double(), x, t)
        assert double.dtype == torch.float64
        held = torch.isfinite(wanted)
        one, whole = mine.process.single, mine.process.cumulative
        tables = [*(part[t] for part in one), *(part[s] for part in whole for s in (t - 1, t))]
        allowed = sum(cancelled(p) for p in tables if p > 1e-18)
        assert (double[held] - wanted[held]).abs().max() <= allowed


@configs
@pytest.mark.parametrize("cumulative", [False, True])
def test_log_q_t(config, cumulative):
    train = config.get("num_train_timesteps", 100)
    mine, theirs, exact = ours(config), original(NAME)(**config), float64_class(NAME)(**config)
    for t in {0, train // 2, train - 1}:
        x = tokens(config, t)
        hot = log_one_hot(x, config["num_vec_classes"], torch.zeros(1), floor=1e-30)
        assert torch.equal(hot, sys.modules[type(theirs).__module__].index_to_log_onehot(x, hot.shape[1]))
        found, expected = (
            scheduler.log_Q_t_transitioning_to_known_class(
                t=t, x_t=x, log_onehot_x_t=hot, cumulative=cumulative
            )
            for scheduler in (mine, theirs)
        )
        assert found.shape == expected.shape == (3, config["num_vec_classes"] - cumulative, 40)
        assert found.dtype == expected.dtype
        wide = exact.log_Q_t_transitioning_to_known_class(
            t=t, x_t=x, log_onehot_x_t=hot.double(), cumulative=cumulative
        )
        check(found, expected, wide)


@configs
def test_apply_cumulative_transitions(config):
    train = config.get("num_train_timesteps", 100)
    mine, theirs, exact = ours(config), original(NAME)(**config), float64_class(NAME)(**config)
    for t in {-1, 0, train // 2, train - 1}:
        q = model(config, tokens(config, 3), t)
        found = mine.apply_cumulative_transitions(q, t)
        check(
            found,
            theirs.apply_cumulative_transitions(q, t),
            exact.apply_cumulative_transitions(q.double(), t),
        )


# --- loops ---


@pytest.mark.parametrize(("config", "steps"), LOOPS)
def test_loop(config, steps):
    """The same tokens at every step, from the same generator, which ends in the same state."""
    runs = []
    for cls, kind in (
        (VQDiffusionScheduler, torch.float32),
        (original(NAME), torch.float32),
        (float64_class(NAME), torch.float64),
    ):
        scheduler, generator = cls(**config), torch.Generator().manual_seed(3)
        scheduler.set_timesteps(steps, device="cpu")
        x = tokens(config, 1)
        run = [x]
        for t in scheduler.timesteps:
            x = scheduler.step(model(config, x, t, kind), t, x, generator=generator).prev_sample
            assert x.dtype == torch.int64
            run.append(x)
        runs.append((torch.stack(run), generator.get_state()))
    for run, state in runs[1:]:
        assert torch.equal(runs[0][0], run) and torch.equal(runs[0][1], state)


@configs
@pytest.mark.parametrize("form", ["normalised", "scaled", "truncated"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_step(config, form, kind):
    train = config.get("num_train_timesteps", 100)
    mine, theirs = ours(config), original(NAME)(**config)
    for t in sorted({0, 1, 2, train // 2, train - 1}):
        x = tokens(config, t + 7, (4, 200))
        log_p = model(config, x, t, kind, form)
        found, expected = (
            scheduler.step(log_p, t, x, torch.Generator().manual_seed(t), return_dict=False)
            for scheduler in (mine, theirs)
        )
        assert isinstance(found, tuple) and len(found) == 1
        assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("form", [int, np.int64, torch.tensor, float])
def test_timesteps_of_any_kind(form):
    config = CONFIGS["defaults"]
    x = tokens(config, 1)
    log_p = model(config, x, 30)
    found = ours(config).step(log_p, form(30), x, torch.Generator().manual_seed(0)).prev_sample
    assert torch.equal(
        found, original(NAME)(**config).step(log_p, 30, x, torch.Generator().manual_seed(0)).prev_sample
    )


def test_output():
    config = CONFIGS["defaults"]
    x = tokens(config, 1)
    found, expected = (s.step(model(config, x, 9), 9, x) for s in (ours(config), original(NAME)(**config)))
    assert type(found).__name__ == type(expected).__name__ == "VQDiffusionSchedulerOutput"
    assert list(found.keys()) == list(expected.keys()) == ["prev_sample"]
    torch.manual_seed(5)
    drawn = ours(config).step(model(config, x, 9), 9, x).prev_sample
    torch.manual_seed(5)
    assert torch.equal(drawn, original(NAME)(**config).step(model(config, x, 9), 9, x).prev_sample)


# --- where diffusers is wrong ---


def test_vq_respacing():
    """diffusers begins five steps at timestep 4, where hardly anything is masked; corrected they begin at noise."""
    mine = ours({"num_vec_classes": 18}, None)
    mine.set_timesteps(5)
    assert mine.timesteps.tolist() == [4, 3, 2, 1, 0]
    assert np.exp(mine.log_cumprod_ct[4]) < 0.05
    right = mine.corrected("vq-respacing")
    assert right.timesteps.tolist() == list(range(99, -1, -1))
    right.set_timesteps(5)
    assert right.timesteps.tolist() == [99, 79, 59, 39, 19]
    mine.set_timesteps(5)
    assert mine.timesteps.tolist() == [4, 3, 2, 1, 0]
    # A corrected step leaves as many masks as its own end has: c̄_79 / c̄_99 of them.
    x = np.full((20, 500), 17)
    log_p = np.full((20, 17, 500), -np.log(17.0))
    for scheduler in (right, right.sparse()):
        left = (scheduler.step(log_p, 99, x, np.random.default_rng(0)).prev_sample == 17).mean()
        share = np.exp(mine.log_cumprod_ct[79] - mine.log_cumprod_ct[99])
        assert abs(left - share) < 5 * math.sqrt(share * (1 - share) / 10_000)
    last = right.step(log_p, 19, x, np.random.default_rng(0)).prev_sample
    assert last.max() < 17


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_corrected_runs_end_without_masks(steps):
    for scheduler in (
        ours({"num_vec_classes": 9}).corrected(),
        ours({"num_vec_classes": 9}).corrected().sparse(),
    ):
        scheduler.set_timesteps(steps)
        x, rng = torch.full((4, 30), 8), np.random.default_rng(0)
        for t in scheduler.timesteps:
            x = scheduler.step(model({"num_vec_classes": 9}, x, 0), t, x, rng).prev_sample
        assert x.max() < 8


def test_vq_log_zero():
    """Nothing is replaced, so what is seen was there; diffusers draws it anew."""
    config = CONFIGS["no replacement"]
    x = torch.randint(8, (4, 200), generator=torch.Generator().manual_seed(0))
    log_p = model(config, x, 3)
    exact = (
        ours(config).corrected("vq-log-zero").step(log_p, 3, x, torch.Generator().manual_seed(0)).prev_sample
    )
    theirs = original(NAME)(**config).step(log_p, 3, x, torch.Generator().manual_seed(0)).prev_sample
    assert torch.equal(exact, x)
    assert (theirs != x).float().mean() > 0.3
    hot = ours({"num_vec_classes": 9}).q_posterior(log_p, x, 3)[:, 8]
    assert torch.isneginf(
        ours({"num_vec_classes": 9}).corrected("vq-log-zero").q_posterior(log_p, x, 3)[:, 8]
    ).all()
    assert (hot < math.log(1e-15)).all() and torch.isfinite(hot).all()


def test_vq_last_step():
    """At t = 0 both draw from the model's output: the posterior there is the same distribution."""
    config = CONFIGS["defaults"]
    x = tokens(config, 1)
    log_p = model(config, x, 0, torch.float64)
    posterior = ours(config).q_posterior(log_p, x, 0)
    assert torch.isneginf(posterior[:, 17]).all()
    assert (posterior[:, :17] - log_p).abs().max() < 1e-12


def test_vq_clamp():
    """No logarithm is bounded: a class of probability e^-100 keeps it."""
    log_p = torch.tensor([[[-100.0], [0.0]]], dtype=torch.float64)
    assert ours({"num_vec_classes": 3}).q_posterior(log_p, torch.tensor([[2]]), 0)[0, 0, 0] == pytest.approx(
        -100
    )


def test_vq_impossible_tables():
    with np.errstate(invalid="ignore", divide="ignore"):
        assert torch.isnan(original(NAME)(9, alpha_cum_start=0.9, gamma_cum_start=0.2).log_bt).any()
        assert torch.isnan(original(NAME)(9, num_train_timesteps=1).log_at).all()
    with pytest.raises(
        ValueError, match=r"alpha_cum_start=0.9, gamma_cum_start=0.2: expected a sum of at most 1"
    ):
        ours({"num_vec_classes": 9, "alpha_cum_start": 0.9, "gamma_cum_start": 0.2})
    single = ours({"num_vec_classes": 9, "num_train_timesteps": 1}, None)
    assert np.exp([single.log_at[0], single.log_ct[0]]) == pytest.approx([9e-6, 0.99999])
    drawn = single.step(np.full((1, 8, 5), -2.0), 0, np.full((1, 5), 8), np.random.default_rng(0)).prev_sample
    assert drawn.max() < 8


# --- errors ---


X = np.zeros((2, 5), np.int64)
LOG_P = np.zeros((2, 8, 5), np.float32)
FAILURES = [
    (lambda s: s.set_timesteps(0), ValueError, "num_inference_steps=0"),
    (lambda s: s.set_timesteps(101), ValueError, "num_inference_steps=101.*at most 100"),
    (lambda s: s.set_timesteps(5, device="quantum"), ValueError, "quantum"),
    (lambda s: s.step(LOG_P, 100, X), ValueError, r"t=100: expected an integer in \[0, 99\]"),
    (lambda s: s.step(LOG_P, -1, X), ValueError, r"t=-1: expected"),
    (lambda s: s.step(LOG_P, 2.5, X), ValueError, r"t=2.5: expected"),
    (
        lambda s: s.step(np.zeros((2, 9, 5)), 5, X),
        ValueError,
        r"model_output has shape \(2, 9, 5\): expected \(B, 8, L\)",
    ),
    (lambda s: s.step(LOG_P, 5, X[:1]), ValueError, r"sample \(1, 5\): expected \(B, K, L\) and \(B, L\)"),
    (
        lambda s: s.step(LOG_P, 5, X.astype(float)),
        TypeError,
        "sample has dtype float64: expected an integer dtype",
    ),
    (lambda s: s.step(LOG_P.astype(int), 5, X), TypeError, "model_output has dtype int64"),
    (lambda s: s.step(torch.zeros(2, 8, 5), 5, X), TypeError, "expected arrays of one array-API library"),
    (lambda s: s.step(LOG_P, 5, X + 9), ValueError, r"sample has classes outside \[0, 8\]"),
    (lambda s: s.step(LOG_P, 5, X, generator=3), TypeError, "generator=3"),
    (lambda s: s.q_posterior(LOG_P, X, 100), ValueError, "t=100"),
    (
        lambda s: s.apply_cumulative_transitions(LOG_P, -2),
        ValueError,
        r"t=-2: expected an integer in \[-1, 99\]",
    ),
    (lambda s: s.corrected("ddim"), ValueError, "vq-respacing"),
]


@pytest.mark.parametrize(("call", "error", "message"), FAILURES, ids=[message for _, _, message in FAILURES])
def test_errors_change_nothing(call, error, message):
    scheduler = ours({"num_vec_classes": 9}, None)
    scheduler.set_timesteps(7)
    before = {name: repr(value) for name, value in vars(scheduler).items() if name != "_steps"}
    for each in (scheduler, scheduler.sparse()):
        with pytest.raises(error, match=message):
            call(each)
    assert {name: repr(value) for name, value in vars(scheduler).items() if name != "_steps"} == before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_vec_classes": 1}, "num_vec_classes=1: expected an integer >= 2"),
        ({"num_vec_classes": 2.5}, "num_vec_classes=2.5"),
        ({"num_vec_classes": 9, "num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"num_vec_classes": 9, "alpha_cum_start": 1.5}, "alpha_cum_start=1.5: expected a probability"),
        ({"num_vec_classes": 9, "alpha_cum_start": float("nan")}, "alpha_cum_start=nan"),
        ({"num_vec_classes": 9, "alpha_cum_end": 1.0}, "alpha_cum_end=1.0: expected at most alpha_cum_start"),
        (
            {"num_vec_classes": 9, "gamma_cum_end": 0.0},
            "gamma_cum_start=9e-06: expected at most gamma_cum_end",
        ),
        (
            {"num_vec_classes": 9, "alpha_cum_end": 0.2},
            "alpha_cum_end=0.2, gamma_cum_end=0.99999: expected a sum",
        ),
        (
            {"num_vec_classes": 9, "gamma_cum_start": 1.0, "gamma_cum_end": 1.0},
            "nothing of x_0 would ever be seen",
        ),
    ],
)
def test_config_errors(config, message):
    with pytest.raises(ValueError, match=message):
        VQDiffusionScheduler(**config)


def test_replacement_must_not_be_undone():
    """ā falls slowly while 1 - ā - c̄ falls to nothing: some step would have to replace with a negative probability."""
    with pytest.raises(ValueError, match="the probability of replacement would be negative"):
        VQDiffusionScheduler(
            9, alpha_cum_start=0.6, alpha_cum_end=0.5, gamma_cum_start=0.0, gamma_cum_end=0.5
        )
