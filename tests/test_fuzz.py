"""Junk from hypothesis for every diffusers-named class: a clear error of a documented type, or a scheduler that works.

Never another exception, a warning, a hang, half a file, or a state that an error has changed. ``ANYSTEP_FUZZ=100000`` in the
environment is the number of cases in all; see docs/fuzzing.md.
"""

import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from anystep import DDIM, LMS, BetaSchedule, Clip, DynamicThreshold, Leading, Plan, State, update
from facade_runs import FACADES, Run, needed, parameters

CASES = int(os.environ.get("ANYSTEP_FUZZ", "0"))
ALL = [pytest.param(cls, id=cls.__name__) for cls in FACADES]
ERRORS = (ValueError, TypeError, OSError, NotImplementedError, IndexError, ImportError)
"""FrozenConfigError is a TypeError."""


def examples(share, few, cells=0):
    """Settings of a property that gets a share of the cases, over so many parametrizations."""
    return settings(
        max_examples=max(few, round(CASES * share / (cells or len(FACADES)))),
        derandomize=not CASES,
        deadline=None if CASES else 5000,  # a hang of one case
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        print_blob=True,
    )


@pytest.fixture(autouse=True)
def _quiet():
    """What schedulers log about junk is of no interest here."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


# --- junk ---

numbers = st.one_of(
    st.integers(-3, 60),
    st.floats(-2.0, 3.0),
    st.floats(),
    st.integers(),
    st.sampled_from(
        [10**7, 10**9, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**400), 1e308, 1e-308, 5e-324, -0.0]
    ),
)
WORDS = """
leading trailing linspace linear scaled_linear squaredcos_cap_v2 sigmoid laplace exp epsilon sample
v_prediction flow_prediction original_sample edm score zero sigma_min log_linear discrete continuous
exponential fixed_small fixed_small_log fixed_large fixed_large_log learned learned_range dpmsolver
dpmsolver++ sde-dpmsolver sde-dpmsolver++ midpoint heun bh1 bh2 logrho deis None true 1000 inf nan
0.5
"""
words = st.sampled_from(WORDS.split())
plain = st.none() | st.booleans() | numbers | words | st.text(max_size=6)
lists = st.lists(st.floats(0.0, 1.0) | numbers, max_size=6) | st.lists(plain, max_size=4)
json_junk = st.recursive(
    plain | lists,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


class Odd:
    """An object of no use."""

    def __repr__(self) -> str:
        return "Odd()"


junk = st.one_of(
    json_junk,
    st.sampled_from([b"bytes", 1j, Odd(), Odd, (), {1, 2}, range(3), float, slice(1, 2), ...]),
    st.sampled_from(
        [np.float32(0.3), np.int64(4), np.bool_(True), np.str_("x"), np.datetime64("2020-01-01")]
    ),
    st.builds(
        np.full,
        st.sampled_from([(), (1,), (3,), (2, 2), (0,)]),
        st.floats(0, 1) | st.integers(0, 99) | st.floats(),
    ),
    st.sampled_from([np.array(["a"]), np.array([None]), np.array([1j]), np.array([True, False])]),
    st.builds(lambda n: torch.linspace(1, 0, n), st.integers(0, 4)),
)


def plausible(name: str, default: Any):
    """Values that may well be right."""
    if "timesteps" in name and name != "num_train_timesteps":
        return st.lists(st.integers(0, 40), max_size=5, unique=True).map(lambda x: sorted(x, reverse=True))
    if name == "sigmas":
        return st.lists(st.floats(0, 1.0), max_size=5, unique=True).map(lambda x: sorted(x, reverse=True))
    if name == "trained_betas":
        return st.none() | st.lists(st.floats(0, 0.999), min_size=1, max_size=40)
    if isinstance(default, bool) or name.startswith("use_"):
        return st.booleans()
    if isinstance(default, int) or name in ("num_inference_steps", "num_vec_classes"):
        return st.integers(1, 60)
    if isinstance(default, float) or name in ("sigma_min", "sigma_max", "mu", "shift_terminal"):
        return st.floats(0, 1) | st.floats(1e-3, 200)
    return words if isinstance(default, str) else plain


@st.composite
def arguments(draw, function, values, most=4, leave=()):
    """Some keyword arguments of a function, each as likely plausible as junk."""
    known = {name: p for name, p in parameters(function).items() if name not in leave}
    names = draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=most)) if known else []
    made = {}
    for name in names:
        sane = draw(st.integers(0, 2)) > 0
        made[name] = draw(plausible(name, known[name].default) if sane else values)
    return made


# --- what must hold ---


def content(value: Any) -> Any:
    """A value by its content, comparable with ==."""
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, torch.Tensor):
        return (
            "tensor",
            str(value.device),
            value.shape,
            None if value.is_meta else content(value.float().numpy()),
        )
    if isinstance(value, dict):
        return {key: content(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return (type(value).__name__, [content(one) for one in value])
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (
            type(value).__name__,
            content({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}),
        )
    return value


CACHES = {"_config_key", "_plans", "_call_plans", "_steps", "_process", "_schedule", "is_scale_input_called"}


def state(scheduler: Any) -> Any:
    """All that a failed call must leave alone."""
    return content({name: value for name, value in vars(scheduler).items() if name not in CACHES})


def clear(error: BaseException, names) -> None:
    """The error is of a documented type and says which argument it is about."""
    text = str(error)
    assert isinstance(error, ERRORS), f"{type(error).__name__}: {text}"
    assert any(name in text for name in names), (
        f"{type(error).__name__}: {text!r} names none of {sorted(names)}"
    )


# Messages about what follows from several arguments say these words.
DERIVED = (
    "sigma_t",
    "alpha_t",
    "betas",
    "alphas_cumprod",
    "sigmas",
    "sigma_min",
    "sigma is 0",
    "levels",
    "timesteps",
    "zero terminal SNR",
    "t=",
    "steps=",
    "of one array-API library",
    "step_index",
    "prediction=",
)


def attempt(scheduler: Any, names, function):
    """Whether a call succeeds; if not, its error is clear and has changed nothing."""
    before = state(scheduler)
    try:
        function()
    except ERRORS as error:
        clear(error, [*names])
        assert state(scheduler) == before
        return False
    return True


def works(scheduler: Any, names, calls: int = 2) -> bool:
    """The first calls of a run give finite arrays like the sample, or a clear error."""
    try:
        # As it was set, if it was.
        steps = 3 if scheduler.num_inference_steps is None else None
        run = Run(scheduler, steps=steps, dtype="float64")
        for _, sample in zip(range(calls), run, strict=False):
            assert type(sample) is np.ndarray and sample.shape == run.sample.shape
            assert sample.dtype == run.sample.dtype
            assert np.isfinite(sample).all(), sample
            for table in ("timesteps", "sigmas", "init_noise_sigma"):
                found = getattr(scheduler, table, None)
                assert found is None or np.isfinite(found).all(), table
    except ERRORS as error:
        clear(error, [*names, *DERIVED])
        return False
    return True


def names_of(cls, *functions):
    return {name for f in (cls.__init__, *functions) for name in parameters(f)}


# --- configs ---


@pytest.mark.parametrize("cls", ALL)
@examples(0.3, 12)
@given(st.data())
def test_a_config_is_refused_clearly_or_works(cls, data):
    config = needed(cls) | data.draw(arguments(cls.__init__, junk))
    names = names_of(cls)
    try:
        scheduler = cls(**config)
    except ERRORS as error:
        clear(error, [*config, *DERIVED])
        return
    try:
        copied = cls.from_config(scheduler.config)
    except ERRORS as error:
        pytest.fail(f"from_config refuses what the constructor takes: {error}")
    assert content(copied.config) == content(scheduler.config)
    works(scheduler, names)
    assert content(scheduler.config) == content(copied.config)
    repr(scheduler)


@pytest.mark.parametrize("cls", ALL)
@examples(0.1, 6)
@given(st.data())
def test_a_config_that_is_replaced_in_a_run(cls, data):
    config = data.draw(arguments(cls.__init__, junk))
    scheduler = cls(**needed(cls))
    run = Run(scheduler, steps=4)
    next(run.samples)
    if attempt(scheduler, [*names_of(cls), *DERIVED], lambda: scheduler.register_to_config(**config)):
        works(scheduler, names_of(cls))


# --- config files ---

KEYS = sorted(set().union(*(parameters(cls.__init__) for cls in FACADES)))
HIDDEN = [
    "_class_name",
    "_use_default_values",
    "_diffusers_version",
    "_ignore_files",
    "_internal_dict",
    "__class__",
    "__init__",
]
NAMES = [
    *(cls.__name__ for cls in FACADES),
    "Plan",
    "object",
    "os",
    "../x",
    "",
    "ConfigMixin",
    "AnyFacade",
    "NoSuchScheduler",
]
documents = st.one_of(
    st.dictionaries(st.sampled_from(KEYS), json_junk, max_size=5),
    st.dictionaries(st.sampled_from(KEYS + HIDDEN) | st.text(max_size=4), json_junk, max_size=5),
    st.builds(
        lambda config, name, used: {**config, "_class_name": name, "_use_default_values": used},
        st.dictionaries(st.sampled_from(KEYS), json_junk, max_size=3),
        st.sampled_from(NAMES) | json_junk,
        st.lists(st.sampled_from(KEYS), max_size=3) | json_junk,
    ),
    json_junk,
)


@st.composite
def files(draw):
    """Bytes that are a config file, or nearly."""
    text = json.dumps(draw(documents))
    kind = draw(st.integers(0, 9))
    if kind == 0:  # a key twice
        text = text.replace("{", '{"beta_start": 1, "beta_start": 2, ', 1)
    elif kind == 1:
        text = "[" * (depth := draw(st.sampled_from([3, 40, 10**5]))) + text + "]" * depth
    elif kind == 2:
        text = '{"trained_betas": ' + "[" * (depth := draw(st.sampled_from([40, 10**5]))) + "]" * depth + "}"
    elif kind == 3:
        text = '{"num_train_timesteps": ' + "9" * draw(st.sampled_from([30, 5000])) + "}"
    data = text.encode(draw(st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "cp037"])))
    if kind == 4:
        data = data[: draw(st.integers(0, len(data)))]
    elif kind == 5:
        data = draw(st.binary(max_size=40))
    elif kind == 6 and data:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(min_size=1, max_size=2)) + data[at + 1 :]
    return data


@pytest.mark.parametrize("cls", ALL)
@examples(0.2, 8)
@given(files(), st.dictionaries(st.sampled_from(KEYS + HIDDEN), junk, max_size=2))
def test_a_file_is_refused_clearly_or_works(tmp_path_factory, cls, data, kwargs):
    folder = tmp_path_factory.mktemp("config", numbered=True) if not CASES else Path(tempfile.mkdtemp())
    path = folder / "scheduler_config.json"
    path.write_bytes(data)
    kwargs = {name: value for name, value in kwargs.items() if not name.startswith("__")}
    try:
        scheduler, _ = cls.from_pretrained(folder, return_unused_kwargs=True, **(needed(cls) | kwargs))
    except ERRORS as error:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        found = list(found) if isinstance(found, dict) else []
        clear(error, [str(path), *found, *kwargs, *DERIVED])
        return
    finally:
        shutil.rmtree(folder)
    assert type(scheduler) is cls
    works(scheduler, [*names_of(cls), *scheduler.config])
    text = scheduler.to_json_string() if _saveable(scheduler) else None
    if text is not None:
        assert content(json.loads(text)).keys() >= {"_class_name", "_diffusers_version"}


def _saveable(scheduler: Any) -> bool:
    try:
        scheduler.to_json_string()
    except TypeError as error:
        clear(error, scheduler.config)
        return False
    return True


folders = st.sampled_from(
    [
        "",
        "in",
        "in/deeper",
        "missing",
        "../out",
        "..",
        "/etc",
        "a/../../b",
        "..\\out",
        "C:\\x",
        "link",
        "loop",
        "file",
        "null\0byte",
        "x" * 300,
        "in/../in",
        ".",
        "~",
        "file/below",
        None,
        3,
        b"in",
        True,
    ]
)


@examples(0.1, 40, 1)
@given(
    st.sampled_from(FACADES),
    folders,
    folders,
    st.sampled_from(["load", "save", "save-file", "push"]),
    st.booleans(),
)
def test_paths_lead_nowhere_else(cls, where, subfolder, action, blocked):
    """A subfolder stays inside, a link is no way out of a save, and a save that fails leaves no file or the old one."""
    root = Path(tempfile.mkdtemp()).resolve()
    try:
        home, outside = root / "home", root / "out"
        for folder in (home / "in" / "deeper", outside):
            folder.mkdir(parents=True)
        scheduler = cls(**needed(cls))
        for folder in (home, home / "in", outside):
            (folder / "scheduler_config.json").write_text(scheduler.to_json_string())
        (home / "file").write_text("a file")
        (home / "link").symlink_to(outside, target_is_directory=True)
        (home / "loop").symlink_to(home / "loop")
        (home / "in" / "deeper" / "scheduler_config.json").mkdir()
        if blocked:
            (home / "in" / "scheduler_config.json").unlink()
            (home / "in" / "scheduler_config.json").mkdir()
        before = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        # Anything absolute would leave the folder of this test, and "" is the current one.
        inner = where if isinstance(where, str) and not os.path.isabs(where) and where != "" else "in"
        target = home / inner if "\0" not in inner else f"{home}/{inner}"
        names = [
            "subfolder",
            "save_directory",
            "scheduler_config.json",
            str(home),
            inner,
            "path",
            "Errno",
            "null",
            "argument",
        ]
        try:
            if action == "load":
                made = cls.from_pretrained(target, subfolder=subfolder, local_files_only=True, **needed(cls))
                assert type(made) is cls
                reached = isinstance(subfolder, str) and (".." in subfolder or os.path.isabs(subfolder))
                assert not reached
            elif action == "save":
                scheduler.save_pretrained(target)
            elif action == "save-file":
                scheduler.to_json_file(target)
            else:
                scheduler.save_pretrained(home, push_to_hub=True, subfolder=f"../{subfolder}")
                raise AssertionError("pushed")
        except ERRORS as error:
            clear(error, names)
        except AssertionError:  # where the folder is a file, as diffusers
            if action != "save" or not Path(target).is_file():
                raise
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.name == "scheduler_config.json":
                assert json.loads(path.read_bytes())["_class_name"] == cls.__name__  # whole
            elif path.is_file() and path not in before:
                assert action == "save-file" and json.loads(path.read_bytes())
            assert not path.name.startswith(".scheduler_config.json"), path
    finally:
        shutil.rmtree(root)


# --- calls ---

CALLS = [
    name
    for name in ("set_timesteps", "set_begin_index", "set_shift", "set_sigmas", "corrected", "to")
    if any(hasattr(cls, name) for cls in FACADES)
]
devices = st.sampled_from(
    [
        "cpu",
        "meta",
        "numpy",
        "torch",
        "jax",
        "quantum",
        "cuda:99",
        "",
        torch.device("cpu"),
        torch.float32,
        None,
        3,
    ]
)


@pytest.mark.parametrize("cls", ALL)
@examples(0.15, 10)
@given(st.data())
def test_timesteps_are_refused_clearly_or_work(cls, data):
    options = data.draw(st.sampled_from(_options(cls)))
    scheduler = cls(**(needed(cls) | options))
    if data.draw(st.booleans()) and "use_dynamic_shifting" not in options:
        run = Run(scheduler, steps=4)
        next(run.samples)
    calls = [name for name in CALLS if hasattr(cls, name)]
    made = [*DERIVED, *options]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(calls))
        method = getattr(cls, name)
        kwargs = data.draw(arguments(method, junk, leave=("device",)))
        if "device" in parameters(method) and data.draw(st.integers(0, 3)) == 0:
            kwargs["device"] = data.draw(devices)
        args = (data.draw(st.sampled_from([*cls.deviations, "x"])),) if name == "corrected" else ()
        named = [*names_of(cls, method), "ids", *made]
        wants = [p for p in parameters(method).values() if p.default is p.empty and p.name not in kwargs]
        kwargs |= {p.name: data.draw(devices if p.name == "device" else st.integers(1, 9)) for p in wants}
        attempt(scheduler, named, lambda m=name, a=args, k=kwargs: getattr(scheduler, m)(*a, **k))
    if backend_name(scheduler) == "numpy" and (scheduler.num_inference_steps or 0) <= 2000:
        works(scheduler, [*names_of(cls), *made])


@pytest.mark.parametrize("size", [10**6 + 1, 10**9, 10**30], ids=str)
@pytest.mark.parametrize("cls", ALL)
def test_sizes_are_bounded(cls, size):
    """A number in a file or a request fills no memory."""
    config = {
        name: size
        for name in ("num_train_timesteps", "num_vec_classes", "solver_order")
        if name in parameters(cls.__init__)
    }
    for name, value in config.items():
        if name != "num_vec_classes" or size >= 2**31:
            with pytest.raises(ValueError, match=f"{name}="):
                cls(**needed(cls) | {name: value})
    scheduler = cls(**needed(cls))
    for name in ("num_inference_steps", "jump_n_sample"):
        if name in parameters(cls.set_timesteps) and not (
            name == "num_inference_steps" and hasattr(cls, "undo_step")
        ):
            with pytest.raises(ValueError, match=f"{name}="):
                scheduler.set_timesteps(**{"num_inference_steps": 100} | {name: size})


def backend_name(scheduler: Any) -> str:
    return "numpy" if scheduler._target is None else scheduler._target[0].name


def _options(cls):
    found = [
        {},
        {"num_train_timesteps": 7},
        {"use_karras_sigmas": True},
        {"use_flow_sigmas": True, "use_dynamic_shifting": True},
    ]
    found += [{"timestep_spacing": word} for word in ("leading", "trailing", "linspace")]
    found += [
        {"use_dynamic_shifting": True},
        {"skip_prk_steps": True},
        {"stochastic_sampling": True},
        {"use_beta_sigmas": True},
    ]
    return [options for options in found if options.keys() <= parameters(cls.__init__).keys()]


def array(kind: int, shape: tuple[int, ...]) -> Any:
    """An array of some library and dtype."""
    if kind < 4:
        return np.full(shape, 0.5, dtype=("float32", "float64", "float16", "int64")[kind])
    if kind < 6:
        return torch.full(shape, 0.5, dtype=(torch.float32, torch.bfloat16)[kind - 4])
    return np.full(shape, 0.5, dtype=complex) if kind == 6 else np.full(shape, True)


samples = st.builds(
    array,
    st.integers(0, 7),
    st.sampled_from(
        [(2, 3, 2, 2)] * 3 + [(2, 3, 2, 3), (1, 3, 2, 2), (2, 6, 2, 2), (3,), (), (0, 3), (2, 3, 12)]
    ),
)
METHODS = (
    "step",
    "step_pred",
    "step_correct",
    "step_prk",
    "step_plms",
    "add_noise_to_input",
    "undo_step",
    "add_noise",
    "scale_noise",
    "get_velocity",
    "scale_model_input",
    "index_for_timestep",
    "previous_timestep",
    "get_lms_coefficient",
    "q_posterior",
    "convert_model_output",
    "get_adjacent_sigma",
)


@pytest.mark.parametrize("cls", ALL)
@examples(0.2, 12)
@given(st.data())
def test_a_bad_call_changes_nothing_and_the_run_goes_on(cls, data):
    """After any number of failed calls, the run ends as one without them; a call that succeeds is not judged by its numbers."""
    options = data.draw(st.sampled_from(_options(cls)))
    if "use_dynamic_shifting" in options:
        options = {}
    scheduler, same = cls(**(needed(cls) | options)), cls(**(needed(cls) | options))
    run, alone = Run(scheduler, steps=4), Run(same, steps=4)
    for _ in range(data.draw(st.integers(0, 2))):
        next(run.samples), next(alone.samples)
    name = data.draw(st.sampled_from([name for name in METHODS if hasattr(cls, name)]))
    method = getattr(cls, name)
    # return_dict is only ever asked for its truth, after the step.
    kwargs = {}
    for key, p in parameters(method).items():
        if key == "return_dict" or (p.default is not p.empty and data.draw(st.integers(0, 3))):
            continue
        good = [
            "sample",
            "model_output",
            "score",
            "x",
            "noise",
            "original",
            "mask",
            "derivative",
            "image",
            "log_p",
            "q",
        ]
        if any(word in key for word in good) and key not in ("timestep", "eta", "s_noise", "mask_class"):
            value = samples if data.draw(st.integers(0, 4)) else junk
        elif key in ("timestep", "t", "timesteps"):
            value = (
                st.sampled_from([*scheduler.timesteps, *map(float, scheduler.timesteps)])
                if data.draw(st.booleans())
                else junk
            )
        elif key == "generator":
            value = st.sampled_from(
                [
                    None,
                    np.random.default_rng(0),
                    torch.Generator(),
                    [np.random.default_rng(0)] * 2,
                    3,
                    "x",
                    [],
                ]
            )
        else:
            value = plausible(key, p.default) if data.draw(st.booleans()) else junk
        kwargs[key] = data.draw(value)
    names = [*names_of(cls, method), *DERIVED, *options, "sample", "noise"]
    with np.errstate(all="ignore"):  # half precision overflows, as it does in any NumPy code
        ok = attempt(scheduler, names, lambda: getattr(scheduler, name)(**kwargs))
    if not ok:
        for mine, other in zip(run, alone, strict=True):
            np.testing.assert_array_equal(mine, other)


# --- plans ---

LEVELS = Leading().levels(BetaSchedule.named("linear"), steps=3)
PLANS = [
    DDIM().plan(LEVELS, "epsilon"),
    DDIM(eta=1.0).plan(LEVELS, "epsilon", Clip(1.0)),
    LMS().plan(LEVELS, "v_prediction"),
    DDIM().plan(LEVELS, "epsilon", DynamicThreshold(0.9, 2.0)),
]


def usable(plan: Plan) -> None:
    """A plan that was read steps."""
    x = np.full((2, 3), 0.5)
    noises = [x] * plan.noises
    with np.errstate(all="ignore"):  # coefficients of any size are a plan's right
        moved = (
            update(plan, 0, State(x, (x,) * plan.memories), x, noises if len(noises) != 1 else x)
            if noises
            else update(plan, 0, State(x, (x,) * plan.memories), x)
        )
    assert moved.x.shape == x.shape and moved.x.dtype == x.dtype


@examples(0.1, 60, 1)
@given(st.data())
def test_json_of_a_plan_is_refused_clearly_or_is_a_plan(data):
    fields = json.loads(data.draw(st.sampled_from(PLANS)).to_json())
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from([*fields, "new"]))
        action = data.draw(st.integers(0, 3))
        if action == 0:
            fields.pop(name, None)
        elif action == 1:
            fields[name] = data.draw(json_junk)
        elif isinstance(fields.get(name), list) and fields[name]:
            at = data.draw(st.integers(0, len(fields[name]) - 1))
            fields[name][at] = data.draw(json_junk)
        elif isinstance(fields.get(name), dict):
            fields[name][data.draw(st.sampled_from(["kind", "bound", "ratio", "max_value", "x"]))] = (
                data.draw(json_junk)
            )
    text = (
        json.dumps(fields)
        if data.draw(st.booleans()) or not isinstance(fields, dict)
        else json.dumps(fields, indent=1)
    )
    raw = text.encode(data.draw(st.sampled_from(["utf-8"] * 4 + ["utf-16", "utf-8-sig"])))
    if data.draw(st.integers(0, 3)) == 0:
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        plan = Plan.from_json(raw)
    except ERRORS as error:
        clear(error, ["plan", *fields, *DERIVED])
        return
    usable(plan)
    assert Plan.from_json(plan.to_json()) == plan


@examples(0.05, 40, 1)
@given(st.data())
def test_npz_of_a_plan_is_refused_clearly_or_is_a_plan(data):
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "plan.npz"
        data.draw(st.sampled_from(PLANS)).save(path)
        with np.load(path) as archive:
            fields = dict(archive)
        if data.draw(st.booleans()):
            name = data.draw(st.sampled_from([*fields, "new"]))
            fields[name] = data.draw(
                st.sampled_from(
                    [
                        np.zeros(0),
                        np.array("x"),
                        np.array(1j),
                        np.array(b"{"),
                        np.array([None]),
                        np.full(3, np.nan),
                        np.zeros((3, 1, 3)),
                        np.array('{"kind": 3}'),
                        np.array("[]"),
                        np.array(True),
                        np.ones((3, 2)),
                    ]
                )
            )
            np.savez(path, **fields)
        raw = path.read_bytes()
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(raw) - 1))
            raw = (
                raw[:at]
                + data.draw(st.binary(min_size=1, max_size=4))
                + raw[at + data.draw(st.integers(0, 30)) :]
            )
        path.write_bytes(raw)
        try:
            plan = Plan.load(path)
        except ERRORS as error:
            clear(error, ["plan", *fields, *DERIVED])
            return
        usable(plan)
    finally:
        shutil.rmtree(folder)
