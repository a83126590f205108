"""Plans: what they refuse, that they cannot change, that files give them back exactly, and methods written as rows by hand."""

import copy
import io
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from dataclasses import FrozenInstanceError
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from anystep import Clip, DynamicThreshold, Plan, init, update
from anystep_conformance.compare import compare
from anystep_conformance.subjects import SUBJECTS, random_plan

TABLES = ("timesteps", "alpha", "sigma", "input_scale", "estimate", "update")
THRESHOLDS = (None, Clip(0.1), DynamicThreshold(0.995, 1.5), Clip(float("inf")))
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LARGE = 8e307  # two of them may be added
finite = st.floats(-LARGE, LARGE) | st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, 0.1, 1 / 3])
small = st.floats(-1, 1) | st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, 0.1, 1 / 3])


@st.composite
def any_plans(draw):
    """Plans of any finite numbers."""
    rows, memories, noises = draw(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(0, 3)))
    shapes = (
        (rows,),
        (rows + 1,),
        (rows + 1,),
        (rows,),
        (rows, 2),
        (rows, 1 + memories, 3 + memories + noises),
    )
    tables = []
    for shape in shapes:
        size = int(np.prod(shape))
        numbers = small if shape == (rows, 2) else finite  # what is folded into the update
        tables.append(np.reshape(draw(st.lists(numbers, min_size=size, max_size=size)), shape))
    return Plan(*tables, threshold=draw(st.sampled_from(THRESHOLDS)))


def bits(plan):
    return [getattr(plan, name).tobytes() for name in TABLES] + [getattr(plan, name).shape for name in TABLES]


def simple(rows=2, **changes):
    """A valid plan's arguments, some of them changed."""
    tables = {
        "timesteps": np.arange(rows)[::-1],
        "alpha": np.ones(rows + 1),
        "sigma": np.arange(rows + 1.0)[::-1],
        "input_scale": np.ones(rows),
        "estimate": np.ones((rows, 2)),
        "update": np.ones((rows, 1, 3)),
    }
    return tables | changes


# Construction


def test_sizes():
    plan = random_plan(4, memories=2, noises=3)
    assert (len(plan), plan.memories, plan.noises) == (4, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": [[1.0], [0.0]]}, "timesteps has shape"),
        ({"timesteps": []}, "expected .* for 0 rows"),
        ({"alpha": np.ones(2)}, r"alpha has shape \(2,\): expected \(3,\) for 2 rows"),
        ({"sigma": np.ones(4)}, "sigma has shape"),
        ({"sigma": np.ones((3, 1))}, "sigma has shape"),
        ({"input_scale": 1.0}, "input_scale has shape"),
        ({"estimate": np.ones((2, 3))}, "estimate has shape"),
        ({"update": np.ones((2, 3))}, r"expected \(N, 1 \+ K, 3 \+ K \+ R\)"),
        ({"update": np.ones((3, 1, 3))}, "update has shape"),
        ({"update": np.ones((2, 1, 2))}, "update has shape"),
        ({"update": np.ones((2, 2, 3))}, "update has shape"),
        ({"update": np.ones((2, 0, 3))}, "update has shape"),
        ({"sigma": [1.0, np.nan, 0.0]}, r"sigma\[1\]=nan: expected finite"),
        ({"update": np.full((2, 1, 3), np.inf)}, r"update\[0, 0, 0\]=inf"),
        ({"estimate": [[1.0, 0.0], [-np.inf, 0.0]]}, r"estimate\[1, 0\]=-inf"),
    ],
)
def test_refuses(changes, message):
    Plan(**simple())
    with pytest.raises(ValueError, match=message):
        Plan(**simple(**changes))


def test_arrays_are_read_only_copies():
    given_tables = simple()
    plan = Plan(**given_tables)
    before = bits(plan)
    for name, table in given_tables.items():
        assert not np.shares_memory(getattr(plan, name), table)
        table += 1  # the caller's array stays the caller's
    assert bits(plan) == before
    for name in (*TABLES, "folded"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(plan, name)[0] = 1
        assert getattr(plan, name).dtype == np.float64
    with pytest.raises(FrozenInstanceError):
        plan.threshold = Clip()


@quick
@given(any_plans(), st.sampled_from(TABLES), st.data())
def test_equality_and_hash(plan, name, data):
    twin = Plan(*(getattr(plan, table).copy() for table in TABLES), threshold=plan.threshold)
    assert plan == twin and hash(plan) == hash(twin) and len({plan, twin}) == 1
    table = getattr(plan, name).copy()
    where = data.draw(st.integers(0, table.size - 1))
    table.flat[where] = np.nextafter(table.flat[where], 0.0) or 1.0
    other = Plan(**{part: getattr(plan, part) for part in TABLES} | {name: table}, threshold=plan.threshold)
    assert plan != other
    assert plan != Plan(*(getattr(plan, table) for table in TABLES), threshold=Clip(0.7))
    assert plan != "a plan"


def test_equal_numbers_in_other_shapes_differ():
    flat = np.zeros((1, 1, 5))  # K = 0, R = 2; the same bytes as nothing else of one row, so compare R with K
    assert Plan(**simple(1, update=np.zeros((1, 2, 5)))) != Plan(**simple(1, update=np.zeros((1, 1, 10))))
    assert Plan(**simple(1, update=flat)) == Plan(**simple(1, update=flat.copy()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_copies_are_equal_and_run(duplicate):
    plan = random_plan(2, memories=1)
    run = lambda plan: update(plan, 1, init(plan, np.ones(3)), np.ones(3)).x.tolist()
    expected = run(plan)  # fills the caches, which must not travel badly
    twin = duplicate(plan)
    assert twin == plan and hash(twin) == hash(plan) and run(twin) == expected


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_copies_are_read_only(duplicate):
    twin = duplicate(random_plan(2, memories=1))
    assert not any(getattr(twin, name).flags.writeable for name in TABLES)


# What is derived


@quick
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 10**6))
def test_folding_is_exact_algebra(memories, noises, seed):
    plan = random_plan(3, memories, noises, seed=seed)
    bounded = Plan(*(getattr(plan, name) for name in TABLES), threshold=Clip())
    assert bounded.folded.tobytes() == plan.update.tobytes()
    for i in range(3):
        for row in range(1 + memories):
            expected = plan.update[i, row].copy()
            expected[0] += expected[2] * plan.estimate[i, 0]
            expected[1] += expected[2] * plan.estimate[i, 1]
            expected[2] = 0
            assert plan.folded[i, row].tolist() == expected.tolist()
        assert bool(plan.stochastic[i]) == bool(plan.update[i, :, 3 + memories :].any())


def test_identity_input():
    assert Plan(**simple()).identity_input
    assert not Plan(**simple(input_scale=[1.0, 1 + 2**-52])).identity_input


# Text and files


@pytest.fixture
def write_and_read(tmp_path):
    def through(plan, suffix):
        plan.save(path := tmp_path / f"plan{suffix}")
        return Plan.load(path)

    return through


@settings(quick, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(plan=any_plans())
@pytest.mark.parametrize("suffix", [".json", ".npz", ".plan", "text"])
def test_round_trip_is_exact(write_and_read, suffix, plan):
    found = Plan.from_json(plan.to_json()) if suffix == "text" else write_and_read(plan, suffix)
    assert bits(found) == bits(plan)
    assert found.threshold == plan.threshold and type(found.threshold) is type(plan.threshold)
    assert found == plan


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_round_trip_of_subjects(subject, write_and_read):
    plan = subject.plan()
    for suffix in (".json", ".npz"):
        assert write_and_read(plan, suffix) == plan


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numpy_numbers_in_a_threshold_are_written(kind):
    plan = Plan(**simple(), threshold=Clip(kind(2)))
    assert Plan.from_json(plan.to_json()).threshold == Clip(2.0)


VALID = Plan(**simple(), threshold=Clip(2.0))


def edited(**changes):
    fields = json.loads(VALID.to_json())
    fields.update(changes)
    return json.dumps({key: value for key, value in fields.items() if value != "absent"})


HOSTILE = {
    "empty": "",
    "no JSON": "plan",
    "null": "null",
    "list": "[]",
    "number": "3",
    "string": '"anystep plan 1"',
    "deep list": "[" * 200_000,
    "deep object": '{"a":' * 200_000,
    "deep table": edited(timesteps="deep").replace('"deep"', "[" * 900 + "1" + "]" * 900),
    "no UTF-8": b'{"format": "\xff"}',
    "UTF-16 rubbish": b"\xff\xfe\x00\xd8",
    "other format": edited(format="anystep plan 2"),
    "no format": edited(format="absent"),
    "format is a list": edited(format=["anystep plan 1"]),
    "NaN": edited(sigma=[2.0, float("nan"), 0.0]),
    "infinite": edited(alpha=[1.0, float("inf"), 1.0]),
    "overflowing literal": VALID.to_json().replace("2.0", "1e999", 1),
    "null number": edited(sigma=[2.0, None, 0.0]),
    "text for numbers": edited(sigma="abc"),
    "object for numbers": edited(sigma={"0": 1.0}),
    "table of objects": edited(sigma=[{}, {}, {}]),
    "ragged": edited(estimate=[[1.0, 1.0], [1.0]]),
    "empty tables": edited(timesteps=[], alpha=[1.0], sigma=[1.0], input_scale=[], estimate=[], update=[]),
    "no rows": edited(timesteps=[], alpha=[1.0], sigma=[1.0], input_scale=[], estimate=[], update=[[[]]]),
    "one shape wrong": edited(timesteps=[1.0]),
    "scalar alpha": edited(alpha=1.0),
    "scalar update": edited(update=1.0),
    "scalar timesteps": edited(timesteps=1.0),
    "huge integer": edited(sigma=[10**400, 1, 0]),
    "integer beyond parsing": edited(sigma="huge").replace('"huge"', "[" + "9" * 5000 + ", 1, 0]"),
    **{f"no {name}": edited(**{name: "absent"}) for name in TABLES},
    "threshold is a number": edited(threshold=1.0),
    "threshold is a list": edited(threshold=["Clip"]),
    "threshold without a kind": edited(threshold={"bound": 1.0}),
    "threshold of a strange kind": edited(threshold={"kind": "os.system", "bound": "ls"}),
    "threshold kind is a list": edited(threshold={"kind": ["Clip"]}),
    "threshold with a strange field": edited(threshold={"kind": "Clip", "limit": 1.0}),
    "threshold below 0": edited(threshold={"kind": "Clip", "bound": -1.0}),
    "threshold is NaN": edited(threshold={"kind": "Clip", "bound": float("nan")}),
    "threshold is text": edited(threshold={"kind": "Clip", "bound": "one"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(name):
    with pytest.raises(ValueError, match=r"."):
        Plan.from_json(HOSTILE[name])


@quick
@given(st.integers(0, len(VALID.to_json()) - 1))
def test_truncated_text(length):
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json(VALID.to_json()[:length])


@quick
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([*TABLES, "threshold", "format"]),
)
def test_any_json_in_a_field(value, name):
    try:
        found = Plan.from_json(json.dumps(json.loads(VALID.to_json()) | {name: value}))
    except ValueError:
        return
    for table in TABLES:
        assert np.isfinite(getattr(found, table)).all()


def archive(**entries):
    """Bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **entries)
    return buffer.getvalue()


def saved(plan, folder):
    plan.save(folder / "plan.npz")
    return (folder / "plan.npz").read_bytes()


def entries(**changes):
    fields = {"format": np.array("anystep plan 1"), "threshold": np.array("null"), **simple(), **changes}
    return {key: value for key, value in fields.items() if value is not None}


def test_hand_made_archive_loads(tmp_path):
    (tmp_path / "plan.npz").write_bytes(archive(**entries()))
    assert Plan.load(tmp_path / "plan.npz") == Plan(**simple())


class Payload:
    """Makes a folder when it is unpickled."""

    folder = ""

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def one_entry_npy():
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


def zip_with(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, content)
    return buffer.getvalue()


HOSTILE_ARCHIVES = {
    "empty file": lambda: b"",
    "text": lambda: VALID.to_json().encode(),
    "a lone npy": one_entry_npy,
    "a zip of text": lambda: zip_with("readme.txt", "hello"),
    "an empty zip": lambda: zip_with("x", "")[-22:],
    "an npy that is none": lambda: zip_with("timesteps.npy", b"\x93NUMPY\x01\x00"),
    "pickle": lambda: archive(**entries(timesteps=np.array([Payload(), 1.0], dtype=object))),
    "pickled format": lambda: archive(**entries(format=np.array(Payload(), dtype=object))),
    "bare pickle": lambda: pickle.dumps(Payload()),
    "wrong format": lambda: archive(**entries(format=np.array("anystep plan 9"))),
    "no format": lambda: archive(**entries(format=None)),
    "numeric format": lambda: archive(**entries(format=np.array(1.0))),
    "NaN": lambda: archive(**entries(sigma=np.array([2.0, np.nan, 0.0]))),
    "wrong shape": lambda: archive(**entries(sigma=np.ones(5))),
    "scalar table": lambda: archive(**entries(sigma=np.array(1.0))),
    "scalar timesteps": lambda: archive(**entries(timesteps=np.array(1.0))),
    "text table": lambda: archive(**entries(sigma=np.array(["a", "b", "c"]))),
    "structured table": lambda: archive(**entries(sigma=np.zeros(3, [("a", "f8"), ("b", "f8")]))),
    "dates": lambda: archive(**entries(sigma=np.array(["2020", "2021", "NaT"], "M8[Y]"))),
    "complex": lambda: archive(**entries(sigma=np.ones(3) * 1j)),
    "broken threshold": lambda: archive(**entries(threshold=np.array("{"))),
    "deep threshold": lambda: archive(**entries(threshold=np.array("[" * 100_000))),
    "wrong threshold": lambda: archive(**entries(threshold=np.array('{"kind": "Clap"}'))),
    "threshold of numbers": lambda: archive(**entries(threshold=np.ones(2))),
    **{f"no {name}": (lambda name=name: archive(**entries(**{name: None}))) for name in TABLES},
}


@pytest.mark.parametrize("name", HOSTILE_ARCHIVES)
def test_hostile_archive(name, tmp_path, monkeypatch):
    path = tmp_path / "plan.npz"
    monkeypatch.setattr(Payload, "folder", str(tmp_path / "ran"))
    path.write_bytes(HOSTILE_ARCHIVES[name]())
    with pytest.raises((ValueError, OSError)):
        Plan.load(path)
    assert not (tmp_path / "ran").exists()


def test_the_payload_runs_where_pickles_are_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(Payload, "folder", str(tmp_path / "ran"))
    path = tmp_path / "plan.npz"
    path.write_bytes(HOSTILE_ARCHIVES["pickle"]())
    with np.load(path, allow_pickle=True) as archive:
        archive["timesteps"]
    assert (tmp_path / "ran").exists()


@settings(quick, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_archive(tmp_path, data):
    content = bytearray(saved(VALID, tmp_path))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
        damaged = True
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        damaged = False  # a bit of a time stamp may change without harm
    (tmp_path / "damaged.npz").write_bytes(bytes(content))
    try:
        found = Plan.load(tmp_path / "damaged.npz")
    except (ValueError, OSError):
        return
    assert not damaged and found == VALID


def test_absent_file(tmp_path):
    for name in ("plan.json", "plan.npz"):
        with pytest.raises(OSError, match="plan"):
            Plan.load(tmp_path / name)
        (folder := tmp_path / f"folder-{name}").mkdir()
        with pytest.raises(OSError, match="folder"):
            Plan.load(folder)
        folder.rmdir()
        with pytest.raises(OSError, match="absent"):
            VALID.save(tmp_path / "absent" / name)
    assert list(tmp_path.iterdir()) == []


class Stop(BaseException):
    """As KeyboardInterrupt is."""


@pytest.mark.parametrize("suffix", [".json", ".npz"])
@pytest.mark.parametrize("where", ["os.open", "os.fsync", "os.replace"])
def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch, suffix, where):
    path = tmp_path / f"plan{suffix}"
    VALID.save(path)
    content = path.read_bytes()
    reached = []

    def fail(*args, **kwargs):
        reached.append(where)
        raise Stop

    monkeypatch.setattr(where, fail)
    with pytest.raises(Stop):
        random_plan(3).save(path)
    monkeypatch.undo()
    assert reached == [where]
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


KILL = """
import os, sys
import numpy as np
from anystep import Plan
os.fsync = lambda handle: os._exit(9)
plan = Plan.load(sys.argv[1])
Plan(plan.timesteps, plan.alpha, plan.sigma, plan.input_scale, plan.estimate, plan.update * 2).save(sys.argv[1])
"""


def test_killed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "plan.json"
    VALID.save(path)
    ended = subprocess.run(
        [sys.executable, "-c", KILL, path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert ended.returncode == 9
    assert Plan.load(path) == VALID


def test_saves_at_the_same_time(tmp_path):
    path = tmp_path / "plan.json"
    plans = [random_plan(20, seed=seed) for seed in range(4)]
    plans[0].save(path)
    stop, seen = threading.Event(), []

    def write(plan):
        while not stop.is_set():
            plan.save(path)

    writers = [threading.Thread(target=write, args=(plan,)) for plan in plans]
    for writer in writers:
        writer.start()
    try:
        for _ in range(50):
            seen.append(Plan.load(path))  # raises if it ever reads half a file
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert set(seen) <= set(plans)
    assert list(tmp_path.iterdir()) == [path]


def test_new_file_is_readable_by_others_as_the_umask_says(tmp_path):
    old = os.umask(0o077)
    try:
        VALID.save(tmp_path / "plan.json")
        Path(tmp_path / "plain").write_text("")
    finally:
        os.umask(old)
    assert (tmp_path / "plan.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


# Methods of several stages or steps, as rows by hand


def field(x, t):
    """dx/dt of an equation that is not linear, and what the model returns."""
    return np.sin(x) * t - 0.3 * x


def run(plan, x):
    state = init(plan, x)
    for i in range(len(plan)):
        state = update(plan, i, state, field(state.x, plan.timesteps[i]))
    return state


def hand_made(times, table):
    count = len(times)
    return Plan(times, np.ones(count + 1), np.ones(count + 1), np.ones(count), np.zeros((count, 2)), table)


TIMES = np.array([2.0, 1.7, 1.1, 0.6, 0.1])
START = np.random.default_rng(0).normal(size=(3, 4))


def heun_rows(times):
    """Two rows a step: x, slope and the columns (x, m, x0, stored x, stored slope)."""
    rows, told = [], []
    for t, to in itertools.pairwise(times):
        h = to - t
        rows.append([[1, h, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
        rows.append([[0, h / 2, 0, 1, h / 2], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
        told += [t, to]
    return hand_made(told, rows)


def heun_loop(x, times):
    for t, to in itertools.pairwise(times):
        first = field(x, t)
        x = x + (to - t) / 2 * (first + field(x + (to - t) * first, to))
    return x


def test_heun_in_two_rows():
    plan = heun_rows(TIMES)
    assert (len(plan), plan.memories, plan.noises) == (8, 2, 0)
    expected = heun_loop(START, TIMES)
    compare(run(plan, START).x, expected, ulp=8, scale=np.abs(START).max())  # measured 0.6


def test_heun_is_second_order():
    error = []
    exact = heun_loop(START, np.linspace(2, 0.1, 2000))
    for steps in (20, 40):
        error.append(np.abs(run(heun_rows(np.linspace(2, 0.1, steps + 1)), START).x - exact).max())
    assert 1.9 < np.log2(error[0] / error[1]) < 2.1


def adams_bashforth_rows(times):
    """Order 2 on an uneven grid, memory = the slope before; its first row is Euler's."""
    h = np.diff(times)
    rows = [[[1, h[0], 0, 0], [0, 1, 0, 0]]]
    for before, now in itertools.pairwise(h):
        rows.append([[1, now * (1 + now / before / 2), 0, -now * now / before / 2], [0, 1, 0, 0]])
    return hand_made(times[:-1], rows)


def adams_bashforth_loop(x, times):
    h, before = np.diff(times), None
    for i, t in enumerate(times[:-1]):
        slope = field(x, t)
        ahead = slope if before is None else slope + h[i] / h[i - 1] / 2 * (slope - before)
        x, before = x + h[i] * ahead, slope
    return x


def test_adams_bashforth_with_one_memory():
    plan = adams_bashforth_rows(TIMES)
    state = run(plan, START)
    compare(state.x, adams_bashforth_loop(START, TIMES), ulp=8, scale=np.abs(START).max())  # measured 0.6
    assert plan.combinations[1][0] == 1  # the slope is handed on, not copied


def test_adams_bashforth_is_second_order():
    exact = heun_loop(START, np.linspace(2, 0.1, 2000))
    error = [
        np.abs(run(adams_bashforth_rows(np.linspace(2, 0.1, n + 1)), START).x - exact).max() for n in (40, 80)
    ]
    assert 1.85 < np.log2(error[0] / error[1]) < 2.15
