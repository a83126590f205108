"""Configs beside diffusers' own: the same toy classes are defined on both bases and driven alike."""

import copy
import enum
import json
import logging
import math
import os
import pickle
import stat
import sys
import types
import warnings
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import diffusers
import hypothesis.strategies as st
import numpy as np
import pytest
from diffusers.configuration_utils import ConfigMixin as TheirConfigMixin
from diffusers.configuration_utils import FrozenDict as TheirFrozenDict
from diffusers.configuration_utils import register_to_config as their_register
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers as TheirKarras
from diffusers.schedulers.scheduling_utils import SchedulerMixin as TheirSchedulerMixin
from hypothesis import assume, example, given, settings

import anystep
from anystep.schedulers._config import ConfigMixin, FrozenConfigError, FrozenDict, register_to_config
from anystep.schedulers._mixin import SCHEDULER_CONFIG_NAME, KarrasDiffusionSchedulers, SchedulerMixin


def toys(scheduler_mixin, config_mixin, register):
    """Four toy schedulers: A and B are compatible, C has odd arguments, D is a stranger."""

    class Base(scheduler_mixin, config_mixin):
        pass

    class ToyAScheduler(Base):
        _compatibles: ClassVar[list[str]] = ["ToyBScheduler", "ToyCScheduler", "ToyNoScheduler"]

        @register
        def __init__(self, steps: int = 1000, eta: float = 0.0, table=None, spacing="leading"):
            self.built = [(self.config.steps, self.config["eta"])]

    class ToyBScheduler(Base):
        _compatibles: ClassVar[list[str]] = ["ToyAScheduler", "ToyBScheduler"]

        @register
        def __init__(self, steps: int = 500, rho: float = 7.0, spacing="linspace"):
            pass

    class ToyCScheduler(Base):
        ignore_for_config: ClassVar[list[str]] = ["kwargs", "secret"]
        _deprecated_kwargs: ClassVar[list[str]] = ["old_steps"]

        @register
        def __init__(self, steps: int = 10, secret=None, rho: float = 1.0, **kwargs):
            self.got = (steps, secret, kwargs)

    class ToyDScheduler(Base):
        has_compatibles = False

        @register
        def __init__(self, width: int = 3, steps: int = 1):
            pass

    return types.SimpleNamespace(A=ToyAScheduler, B=ToyBScheduler, C=ToyCScheduler, D=ToyDScheduler)


OURS = toys(SchedulerMixin, ConfigMixin, register_to_config)
THEIRS = toys(TheirSchedulerMixin, TheirConfigMixin, their_register)
KINDS = "ABCD"


@pytest.fixture(autouse=True, scope="module")
def _toys_are_in_the_packages():
    with pytest.MonkeyPatch.context() as patch:
        for kind in KINDS:
            name = f"Toy{kind}Scheduler"
            patch.setattr(anystep, name, getattr(OURS, kind), raising=False)
            patch.setattr(diffusers, name, getattr(THEIRS, kind), raising=False)
        yield


class Records(logging.Handler):
    """Collects (level, keys mentioned) of both packages' loggers."""

    names = ("anystep", "diffusers")

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.seen: list[tuple[int, tuple[str, ...]]] = []

    def emit(self, record):
        text = record.getMessage()
        self.seen.append((record.levelno, tuple(key for key in KEYS if repr(key) in text)))

    def __enter__(self):
        self.before = [logging.getLogger(name).level for name in self.names]
        for name in self.names:
            logging.getLogger(name).addHandler(self)
            logging.getLogger(name).setLevel(logging.INFO)
        return self

    def __exit__(self, *_):
        for name, level in zip(self.names, self.before, strict=True):
            logging.getLogger(name).removeHandler(self)
            logging.getLogger(name).setLevel(level)


KEYS = ("steps", "eta", "table", "spacing", "rho", "secret", "width", "old_steps", "extra", "another")
values = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.lists(st.integers(0, 3))
configs = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys((*KEYS, "_private", "_diffusers_version"), values)
    | {"quantization_config": st.just({"bits": 4})}
    | {"_class_name": st.sampled_from([f"Toy{kind}Scheduler" for kind in "ABCDN"] + [["x", "y"]])}
    | {"_use_default_values": st.lists(st.sampled_from(KEYS), max_size=4)},
)


def comparable(config):
    """A config as a plain dict in which the order of the defaults does not matter."""
    config = dict(config)
    if "_use_default_values" in config:
        config["_use_default_values"] = sorted(config["_use_default_values"])
    return config


def outcome(function):
    """What a call gives and logs; of an exception, the type."""
    with Records() as records:
        try:
            made, unused = function()
        except (TypeError, ValueError) as error:
            return type(error)
    return type(made).__name__, comparable(made.config), unused, sorted(records.seen), made.to_json_string()


def same(function):
    """Call with our toys and with theirs."""
    ours, theirs = outcome(lambda: function(OURS)), outcome(lambda: function(THEIRS))
    assert ours == theirs
    return ours


# The same as diffusers


@given(st.sampled_from(KINDS), configs, st.dictionaries(st.sampled_from(KEYS), values, max_size=3))
@example("A", {"_class_name": "ToyDScheduler", "width": 3, "steps": 4, "extra": 1}, {"eta": 1.0})
@settings(max_examples=300)
def test_from_config_does_as_diffusers_does(kind, config, kwargs):
    def make(toys):
        return getattr(toys, kind).from_config(config, return_unused_kwargs=True, **kwargs)

    before = copy.deepcopy(config)
    same(make)
    assert config == before


@given(st.lists(st.sampled_from(KINDS), min_size=2, max_size=4), st.data())
@settings(max_examples=150)
def test_swaps_do_as_diffusers_does(kinds, data):
    options = {
        "A": KEYS[:4],
        "B": ("steps", "rho", "spacing"),
        "C": ("steps", "rho"),
        "D": ("width", "steps"),
    }
    kwargs = data.draw(st.dictionaries(st.sampled_from(options[kinds[0]]), values))
    saved = data.draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)))

    def make(toys):
        made, unused = getattr(toys, kinds[0])(**kwargs), {}
        for kind, as_json in zip(kinds[1:], saved, strict=False):
            config = json.loads(made.to_json_string()) if as_json else made.config
            made, unused = getattr(toys, kind).from_config(config, return_unused_kwargs=True)
        return made, unused

    same(make)


def test_a_round_trip_keeps_what_was_given_and_drops_defaults():
    a = OURS.A(eta=0.5, spacing="trailing")
    b = OURS.B.from_config(a.config)
    assert (b.config.steps, b.config.spacing, b.config.eta) == (500, "trailing", 0.5)
    again = OURS.A.from_config(b.config)
    assert comparable(again.config) == comparable(a.config)


class Text(enum.StrEnum):
    LEADING = "leading"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
) | st.sampled_from(
    [-math.inf, PurePosixPath("a/b"), Path("a/b"), Text.LEADING, (1, 2), np.arange(3), np.float64(0.1)]
)


@given(st.dictionaries(st.sampled_from(KEYS[:4]), json_values))
def test_json_is_byte_identical_to_diffusers(kwargs):
    # diffusers converts a Path and an array, but no PurePath
    assume(not any(type(value) is PurePosixPath for value in kwargs.values()))
    kwargs |= {"_ignore_files": 1, "_pre_quantization_dtype": 2, "_other": 3}
    ours, theirs = OURS.A(**kwargs), THEIRS.A(**kwargs)
    assert ours.to_json_string() == theirs.to_json_string()
    assert repr(ours) == repr(theirs)


def test_json_holds_numpy_scalars_paths_and_infinity():
    text = OURS.A(
        steps=np.int64(3),
        eta=np.float32(0.5),
        table=[np.bool_(True), {"x": np.ones(2)}],
        spacing=PurePosixPath("a"),
    ).to_json_string()
    assert json.loads(text) == {
        "_class_name": "ToyAScheduler", "_diffusers_version": "0.42.1", "steps": 3, "eta": 0.5,
        "table": [True, {"x": [1.0, 1.0]}], "spacing": "a",
    }  # fmt: skip
    assert '"eta": -Infinity' in OURS.A(eta=-math.inf).to_json_string()


def test_the_version_in_files_is_that_of_the_pinned_diffusers():
    assert json.loads(OURS.A().to_json_string())["_diffusers_version"] == diffusers.__version__


@given(
    st.dictionaries(st.sampled_from(KEYS[:4]), st.integers() | st.just(-math.inf) | st.lists(st.integers()))
)
@settings(max_examples=30)
def test_files_are_exchanged_with_diffusers(tmp_path_factory, kwargs):
    ours, theirs = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs")
    OURS.A(**kwargs).save_pretrained(ours)
    THEIRS.A(**kwargs).save_pretrained(theirs)
    assert (ours / SCHEDULER_CONFIG_NAME).read_bytes() == (theirs / SCHEDULER_CONFIG_NAME).read_bytes()
    for kind in "AB":
        assert comparable(getattr(OURS, kind).from_pretrained(theirs).config) == comparable(
            getattr(THEIRS, kind).from_pretrained(ours).config
        )


def test_enumeration_is_that_of_diffusers():
    assert [(e.name, e.value) for e in KarrasDiffusionSchedulers] == [(e.name, e.value) for e in TheirKarras]
    assert pickle.loads(pickle.dumps(KarrasDiffusionSchedulers(1))) is KarrasDiffusionSchedulers(1)


# Recording


def test_positional_arguments_count_as_given():
    a = OURS.A(7, 0.5)
    assert a.config["_use_default_values"] == ["table", "spacing"]
    assert OURS.A.from_config(a.config).config.steps == 7
    assert THEIRS.A.from_config(THEIRS.A(7).config).config.steps == 1000  # what is not reproduced
    assert "_use_default_values" not in OURS.D(width=1, steps=2).config


def test_config_is_there_before_the_constructor_runs():
    assert OURS.A(steps=3, eta=1).built == [(3, 1)]


def test_private_arguments_go_into_the_config_only():
    made = OURS.C(4, _origin="elsewhere", old_steps=5)
    assert made.config["_origin"] == "elsewhere" and made.got == (4, None, {"old_steps": 5})
    assert "secret" not in OURS.C(secret=3).config and "kwargs" not in made.config
    for toys in (OURS, THEIRS):
        assert toys.C.from_config({"old_steps": 5}).got == (10, None, {"old_steps": 5})
        assert toys.C.from_config({}, old_steps=5, other=6).got == (10, None, {"old_steps": 5})
    assert OURS.C(4, 3, 2.0).got == (4, 3, {}) and OURS.C(4, 3, 2.0).config.rho == 2.0


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"step": 3}, "unexpected keyword argument 'step': did you mean 'steps'"),
        ((), {"zzz": 3}, r"unexpected keyword argument 'zzz'\. It takes steps, eta, table, spacing"),
        ((1,), {"steps": 2}, "multiple values for argument 'steps'"),
        ((1, 2, 3, 4, 5), {}, "too many positional arguments"),
    ],
)
def test_wrong_arguments_are_explained(args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        OURS.A(*args, **kwargs)


def test_decorator_needs_the_mixin_and_the_mixin_a_file_name():
    class Bare:
        @register_to_config
        def __init__(self, x=1):
            pass

    class Nameless(ConfigMixin):
        @register_to_config
        def __init__(self, x=1):
            pass

    with pytest.raises(RuntimeError, match=r"Bare.*ConfigMixin"):
        Bare()
    with pytest.raises(NotImplementedError, match=r"Nameless\.config_name"):
        Nameless()
    with pytest.raises(ValueError, match=r"Nameless\.config_name"):
        Nameless.load_config("x")


def test_a_subclass_that_calls_its_base_keeps_what_it_was_given():
    class Derived(OURS.A):
        @register_to_config
        def __init__(self, steps=5, width=2, table=None):
            super().__init__(steps=steps, eta=1.0)
            self.register_to_config(width=width + 1)

        def _configured(self):
            raise AssertionError("called during construction")

    made = Derived(width=4, table=[1])
    assert made.config["_use_default_values"] == ["steps", "spacing"]
    assert made.config | {"_use_default_values": 0} == {
        "steps": 5, "width": 5, "table": [1], "eta": 1.0, "spacing": "leading", "_use_default_values": 0,
    }  # fmt: skip
    with pytest.raises(AssertionError, match="called during construction"):
        made.register_to_config(width=1)


# The frozen dict


@pytest.mark.parametrize(
    "change",
    [
        lambda c: setattr(c, "steps", 1),
        lambda c: setattr(c, "new", 1),
        lambda c: delattr(c, "steps"),
        lambda c: c.__setitem__("steps", 1),
        lambda c: c.__delitem__("steps"),
        lambda c: c.pop("steps"),
        lambda c: c.pop("new", None),
        lambda c: c.popitem(),
        lambda c: c.clear(),
        lambda c: c.update(steps=1),
        lambda c: c.setdefault("steps", 1),
        lambda c: c.setdefault("new", 1),
        lambda c: c.__ior__({"steps": 1}),
        lambda c: exec("c |= {'steps': 1}", {"c": c}),
    ],
)
@pytest.mark.parametrize("kind", [TypeError, AttributeError, FrozenConfigError])
def test_config_cannot_be_changed(change, kind):
    config = OURS.A(steps=3).config
    before = dict(config)
    with pytest.raises(kind, match=r"immutable: make a new scheduler with from_config"):
        change(config)
    config.__init__(steps=9)
    assert config == before and config.steps == config["steps"] == 3


def test_config_is_a_dict_with_attributes():
    config = OURS.A(steps=3).config
    assert isinstance(config, dict) and config == dict(config) and dict(config) == config
    assert hasattr(config, "steps") and not hasattr(config, "rho") and getattr(config, "rho", 5) == 5
    with pytest.raises(AttributeError, match="no key 'rho'"):
        config.rho  # noqa: B018
    assert {**config}["steps"] == 3 and (config | {"steps": 4})["steps"] == 4 and config.steps == 3
    with pytest.raises(TypeError, match="config key 1: expected a string"):
        FrozenDict({1: 2})


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_config_copies(copied):
    config = FrozenDict(steps=3, table=[1], __deepcopy__=4, __reduce_ex__=5)
    other = copied(config)
    assert type(other) is FrozenDict and other == config
    with pytest.raises(FrozenConfigError):
        other.steps = 2


@pytest.mark.parametrize("table", [[1, [2]], {"x": [1]}, np.arange(3.0)])
def test_config_is_not_tied_to_what_it_was_made_from(table):
    before = copy.deepcopy(table)
    made = OURS.A(table=table)
    table["x" if isinstance(table, dict) else 0] = 9
    np.testing.assert_equal(made.config.table, before)


# A config that is replaced


class Built(OURS.A):
    @register_to_config
    def __init__(self, steps: int = 4, eta: float = 0.0):
        self.calls = 0
        self.log: list[int] = []
        self._configured()

    def _configured(self):
        self.calls += 1
        self.log.append(self.config.steps)
        self.times = np.arange(self.config.steps)
        if self.config.steps > 9:
            self.register_to_config(steps=9)
            self._configured()
        if self.config.eta < 0:
            raise ValueError("eta")


def test_replacing_the_config_rebuilds():
    made = Built(steps=2)
    assert made.calls == 1 and len(made.times) == 2
    made._internal_dict = TheirFrozenDict({**made.config, "steps": 3})  # as diffusers' pipelines do
    assert made.calls == 2 and len(made.times) == 3 and type(made.config) is FrozenDict
    made.register_to_config(steps=5, kwargs=None)
    assert made.calls == 3 and len(made.times) == 5 and "kwargs" not in made.config
    made.register_to_config(steps=20)
    assert made.config.steps == 9 and len(made.times) == 9
    made.register_to_config(steps=1)
    assert len(made.times) == 1


@pytest.mark.parametrize(
    "change", [Built.register_to_config, lambda made, **config: setattr(made, "_internal_dict", config)]
)
def test_a_config_that_fails_changes_nothing(change):
    made = Built(steps=2)
    before = copy.deepcopy(made.__dict__)
    with pytest.raises(ValueError, match="eta"):
        change(made, steps=3, eta=-1.0)
    np.testing.assert_equal(made.__dict__, before)
    made.register_to_config(steps=3)
    assert len(made.times) == 3
    with pytest.raises((TypeError, ValueError)):
        made._internal_dict = 5
    assert len(made.times) == made.config.steps == 3


def test_hidden_keys_rebuild_too():
    made = Built.from_config({"steps": 3, "_class_name": "ToyBScheduler", "rho": 1.0})
    assert made.calls == 2 and made.config.rho == 1.0 and made.config["_class_name"] == "Built"
    assert Built.from_config({"steps": 3}).calls == 1


# Attributes


def test_config_keys_read_as_attributes_warn():
    made = OURS.A(steps=3)
    with pytest.warns(
        FutureWarning, match=r"Accessing config attribute steps.*scheduler\.config\.steps"
    ) as caught:
        assert made.steps == 3
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", ["nothing", "items", "keys", "__deepcopy__", "__array__"])
def test_unknown_attributes_raise_as_python_does(name):
    made = OURS.A(_x=1)
    made.register_to_config(__deepcopy__=1, __array__=2)
    with pytest.raises(AttributeError) as caught:
        getattr(made, name)
    assert str(caught.value) == f"'ToyAScheduler' object has no attribute '{name}'"
    assert not hasattr(made, name) and copy.deepcopy(made).config == made.config


def test_half_made_objects_do_not_recurse():
    empty = object.__new__(OURS.A)
    for name in ("_internal_dict", "config", "steps", "__setstate__", "__deepcopy__"):
        assert not hasattr(empty, name)
    assert json.loads(repr(empty).removeprefix("ToyAScheduler "))["_class_name"] == "ToyAScheduler"


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), Built.clone]
)
def test_objects_copy_without_rebuilding(copied):
    made = Built(steps=3)
    other = copied(made)
    assert type(other) is Built and other.config == made.config and other.calls == 1
    other.register_to_config(steps=2)
    assert (len(made.times), len(other.times)) == (3, 2)


def test_clone_shares_nothing_that_mutates():
    made = Built(steps=3)
    frozen = np.arange(3)
    frozen.flags.writeable = False
    made.table, made.seen, made.plans, made.state, made.config_like = (
        frozen,
        {1},
        {"a": 1},
        (frozen, [1]),
        [frozen],
    )
    other = made.clone()
    other.times[0] = 9
    other.log.append(9)
    other.seen.add(9)
    other.plans["b"] = 9
    assert made.times[0] == 0 and made.log == [3] and made.seen == {1} and made.plans == {"a": 1}
    assert other.table is frozen and other.state is made.state and other.config_like[0] is frozen


def test_repr_changes_nothing():
    made = OURS.A(steps=3)
    before = dict(made.config)
    assert repr(made) == f"ToyAScheduler {made.to_json_string()}"
    assert made.config == before and "_class_name" not in made.config


# Classes


def test_compatibles_are_own_class_then_as_listed():
    assert OURS.A().compatibles == OURS.A._get_compatibles() == [OURS.A, OURS.B, OURS.C]
    assert OURS.B().compatibles == [OURS.B, OURS.A] and OURS.D().compatibles == [OURS.D]
    assert {c.__name__ for c in THEIRS.A().compatibles} == {c.__name__ for c in OURS.A().compatibles}


def test_classes_of_another_package_are_found(monkeypatch, caplog):
    package = types.ModuleType("strangers")

    class OwnScheduler(OURS.A):
        _compatibles: ClassVar[list[str]] = ["OtherScheduler", "ToyBScheduler", "text"]
        __module__ = "strangers.inner"

        @register_to_config
        def __init__(self, steps=1):
            pass

    class OtherScheduler(OURS.A):
        __module__ = "strangers.inner"

        @register_to_config
        def __init__(self, special=1):
            pass

    class Plain:
        def __init__(self, whatever): ...

    package.OtherScheduler, package.Plain, package.text, package.path = OtherScheduler, Plain, "no class", os
    monkeypatch.setitem(sys.modules, "strangers", package)
    assert OwnScheduler().compatibles == [OwnScheduler, OtherScheduler, OURS.B]
    made = OwnScheduler.from_config({"_class_name": "OtherScheduler", "special": 2, "rho": 3})
    assert made.config.special == 2 and caplog.records == []
    for name in ("path", "text", "__class__", "os.path", ""):  # no class of ours: ignored, not run
        OwnScheduler.from_config({"_class_name": name})
    OwnScheduler.from_config({"whatever": 2, "_class_name": "Plain"})
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "whatever" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "config is a NoneType"),
        (5, "config is a int"),
        (OURS.A(), r"config is a ToyAScheduler: expected a dict, as scheduler\.config is"),
        ({"_class_name": 5}, "_class_name=5: expected the name of a class"),
        ({"_class_name": None}, "_class_name=None"),
        ({"_use_default_values": "steps"}, "_use_default_values='steps': expected a list"),
        ({"_use_default_values": 5}, "_use_default_values=5"),
    ],
)
def test_from_config_explains_what_it_refuses(config, message):
    with pytest.raises(ValueError, match=message):
        OURS.A.from_config(config)


def test_from_config_takes_any_mapping_and_awkward_keys():
    config = types.MappingProxyType({"steps": 3, "self": 1, "cls": 2, "config_dict": 3, "kwargs": 4})
    made, unused = OURS.A.from_config(config, return_unused_kwargs=True)
    assert made.config.steps == 3 and made.config["self"] == 1 and unused["config_dict"] == 3
    with pytest.raises(TypeError, match="config key 1"):
        OURS.A.from_config({1: 2})
    assert OURS.A.from_config({"_use_default_values": [[], "steps"], "steps": 4}).config.steps == 1000


# Files


@pytest.fixture
def saved(tmp_path):
    OURS.A(steps=3).save_pretrained(tmp_path / "model" / "scheduler")
    return tmp_path / "model"


def write(folder, content):
    path = folder / SCHEDULER_CONFIG_NAME
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_config_is_found_in_file_folder_and_subfolder(saved):
    inner = saved / "scheduler"
    for source, options in (
        (inner / SCHEDULER_CONFIG_NAME, {}),
        (inner, {}),
        (str(inner), {}),
        (saved, {"subfolder": "scheduler"}),
        (saved, {"subfolder": Path("scheduler")}),
        (inner, {"subfolder": ""}),
    ):
        assert OURS.A.from_pretrained(source, **options).config.steps == 3
    made, unused = OURS.A.from_pretrained(
        inner, return_unused_kwargs=True, eta=0.5, other=1, revision="x", token=None
    )
    assert made.config.eta == 0.5 and unused == {
        "other": 1,
        "_class_name": "ToyAScheduler",
        "_diffusers_version": "0.42.1",
    }
    config, unused, commit = OURS.A.load_config(inner, True, True, other=1, revision="x")
    assert config["steps"] == 3 and unused == {"other": 1} and commit is None
    assert OURS.A.load_config(inner) == config and OURS.A.load_config(inner, return_commit_hash=True) == (
        config,
        None,
    )


def test_a_missing_subfolder_falls_back_with_a_warning(saved, caplog):
    assert OURS.A.from_pretrained(saved / "scheduler", subfolder="other").config.steps == 3
    assert THEIRS.A.from_pretrained(saved / "scheduler", subfolder="other").config.steps == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "is read instead" in caplog.text


@pytest.mark.parametrize(
    "subfolder",
    ["..", "a/../../b", "/etc", "\\etc", "..\\x", "C:", "C:\\x", "a\0b", "//host/share", Path("..")],
)
def test_subfolders_cannot_lead_out(saved, subfolder, monkeypatch):
    hub(monkeypatch)
    for source in (saved / "scheduler", "owner/name"):
        with pytest.raises(ValueError, match=r"subfolder=.*relative path"):
            OURS.A.from_pretrained(source, subfolder=subfolder)
    with pytest.raises(ValueError, match=r"subfolder=.*relative path"):
        OURS.A().push_to_hub("owner/name", subfolder=subfolder)


@pytest.mark.parametrize(
    "source", ["./missing", "/missing/file", "a/b/c", "", "a\0b", "..", "C:\\x", "-x", "a/.b"]
)
def test_what_is_no_repository_is_not_asked_of_the_hub(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OSError, match=r"does not exist|neither an existing file or folder nor a repository"):
        OURS.A.from_pretrained(source)


@pytest.mark.parametrize("source", [None, 5, b"x", ["x"]])
def test_what_is_no_path_is_refused(source):
    with pytest.raises(ValueError, match=r"pretrained_model_name_or_path=.*expected a file"):
        OURS.A.from_pretrained(source)


def test_paths_given_to_from_config_are_deprecated(saved):
    for load in (
        lambda: OURS.A.from_config(str(saved), subfolder="scheduler", eta=0.5),
        lambda: OURS.A.from_config(pretrained_model_name_or_path=saved, subfolder="scheduler", eta=0.5),
    ):
        with pytest.warns(FutureWarning, match=r"use ToyAScheduler\.from_pretrained") as caught:
            made = load()
        assert (made.config.steps, made.config.eta) == (3, 0.5) and caught[0].filename == __file__
    with pytest.warns(FutureWarning, match="use load_config"):
        assert OURS.A.get_config_dict(saved, subfolder="scheduler")["steps"] == 3


BAD = {
    "empty": ("", "Expecting value"),
    "not JSON": ("steps: 3", "Expecting value"),
    "a list": ("[1]", "not an object"),
    "a number": ("3", "not an object"),
    "cut off": ('{"steps": 3', "Expecting"),
    "two objects": ("{}{}", "Extra data"),
    "a key twice": ('{"steps": 3, "eta": 1, "steps": 4}', "'steps' twice"),
    "an inner key twice": ('{"table": {"a": 1, "a": 1}}', "'a' twice"),
    "NaN": ('{"eta": NaN}', "NaN"),
    "inner NaN": ('{"table": [1, NaN]}', "NaN"),
    "deep": ('{"table": ' + "[" * 40 + "]" * 40 + "}", "at most 32 levels"),
    "very deep": ("[" * 200_000, "recursion"),
    "very deep object": ('{"a":' * 200_000, "recursion"),
    "huge integer": ('{"steps": ' + "1" * 5000 + "}", "integer string conversion"),
    "not UTF-8": (b'{"steps": "\xff"}', "utf-8"),
    "UTF-16": ('{"steps": 3}'.encode("utf-16"), "utf-8"),
    "too large": (b" " * (16 * 2**20) + b"{}", "larger than"),
    "two byte-order marks": ("\ufeff\ufeff{}", "Expecting|BOM"),
    "null byte": (b"\0", "Expecting"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(name, tmp_path):
    content, message = BAD[name]
    path = write(tmp_path, content)
    with pytest.raises(OSError, match=f"is not a config: .*({message})") as caught:
        OURS.A.from_pretrained(tmp_path)
    assert str(path) in str(caught.value)


def test_good_files_are_read(tmp_path):
    for content, config in (
        ("\ufeff{}", {}),
        ('{"eta": -Infinity}', {"eta": -math.inf}),
        (
            '{"eta": Infinity, "steps": 12345678901234567890123}',
            {"eta": math.inf, "steps": 12345678901234567890123},
        ),
        ('{"table": ' + "[" * 30 + "]" * 30 + "}", None),
        ("{}" + " " * (16 * 2**20 - 2), {}),
    ):
        write(tmp_path, content)
        assert config is None or OURS.A.load_config(tmp_path) == config
        assert OURS.A.from_pretrained(tmp_path).to_json_string()


def test_a_file_runs_nothing(tmp_path, capsys):
    auto_map = {"AutoModel": "evil.Evil"}
    (tmp_path / "evil.py").write_text("print('evil')")
    write(
        tmp_path,
        json.dumps({"_class_name": "print", "auto_map": auto_map, "__reduce__": "x", "__class__": "y"}),
    )
    made = Built.from_pretrained(tmp_path)
    assert made.config.auto_map == auto_map and type(made) is Built and type(made.config) is FrozenDict
    assert capsys.readouterr().out == "" and pickle.loads(pickle.dumps(made)).config == made.config


NOT_SAVED = ("_ignore_files", "_pre_quantization_dtype")
SEED = OURS.A(steps=3, eta=-math.inf, table=[1, {"a": None}]).to_json_string().encode()
FRAGMENTS = (
    *b'{ } ] " , : NaN -Infinity 1e999 "self":1, "__deepcopy__":1, "_class_name":1, \xff \\ud800'.split(),
    *(b"[" * 50, b"\xef\xbb\xbf", b"\xff", b'"_use_default_values":["steps"],', b'"_use_default_values":7,'),
)
edits = st.lists(
    st.tuples(
        st.integers(0, len(SEED)), st.integers(0, 4), st.binary(max_size=3) | st.sampled_from(FRAGMENTS)
    ),
    max_size=4,
)


@given(edits)
@settings(max_examples=300)
def test_hostile_files_load_or_fail_cleanly(tmp_path_factory, changes):
    content = SEED
    for start, length, new in changes:
        content = content[:start] + new + content[start + length :]
    path = write(tmp_path_factory.getbasetemp(), content)
    try:
        made = OURS.A.from_pretrained(path)
    except (OSError, ValueError):
        assert content != SEED
        return
    expected = json.loads(content.decode("utf-8-sig"))
    for name in {"steps", "eta", "table", "spacing"} - set(expected.get("_use_default_values", ())):
        assert name not in expected or made.config[name] == expected[name]
    written = json.loads(made.to_json_string())
    for name in expected.keys() - {"_class_name", "_diffusers_version", "_use_default_values"}:
        assert name in made.config and (name in NOT_SAVED or written[name] == made.config[name])
    assert copy.deepcopy(made).config == made.config
    repr(made)


# Saving


def test_saving_makes_folders_and_replaces_files(tmp_path):
    folder = tmp_path / "a" / "b"
    OURS.A(steps=3).save_pretrained(str(folder))
    OURS.A(steps=4).save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == [SCHEDULER_CONFIG_NAME]
    assert OURS.A.from_pretrained(folder).config.steps == 4
    OURS.A(steps=5).to_json_file(folder / "other.json")
    assert (folder / "other.json").read_bytes() == OURS.A(steps=5).to_json_string().encode()


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_saved_files_have_ordinary_rights(tmp_path):
    before = os.umask(0o022)
    try:
        OURS.A().save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / SCHEDULER_CONFIG_NAME).stat().st_mode) == 0o644


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, function):
    OURS.A(steps=3).save_pretrained(tmp_path)

    def fail(*args):
        assert args and len(list(tmp_path.iterdir())) == 2
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(OSError, match="disk full"):
            OURS.A(steps=4).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [SCHEDULER_CONFIG_NAME]
    assert OURS.A.from_pretrained(tmp_path).config.steps == 3


class Recursive:
    def tolist(self):
        return [self]


loop: list[Any] = []
loop.append(loop)


NOT_JSON = (
    *(print, lambda t: t, {1, 2}, b"x", 1j, np.array([1j]), object(), Recursive(), loop, {"a": {"b": print}}),
    *(math.nan, [math.nan], np.array([math.nan]), {1: 1, "1": 2}, {1: 1, "a": 2}, {(1,): 1}),
)


@pytest.mark.parametrize("value", NOT_JSON, ids=lambda value: type(value).__name__)
def test_what_json_cannot_hold_is_refused_before_writing(tmp_path, value):
    made = OURS.A(table=value)
    with pytest.raises(TypeError, match=r"^table=.* cannot be saved as JSON"):
        made.save_pretrained(tmp_path / "new")
    with pytest.raises(TypeError, match="table="):
        made.to_json_file(tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == [] and repr(made).startswith("ToyAScheduler {'steps': 1000")


def test_saving_to_a_file_is_refused_as_in_diffusers(tmp_path):
    path = tmp_path / "file"
    path.write_text("kept")
    for toys in (OURS, THEIRS):
        with pytest.raises(AssertionError, match="file"):
            toys.A().save_pretrained(path)
    assert path.read_text() == "kept"


# The Hub

COMMIT = "0123456789" * 4


def hub(monkeypatch, answer=None):
    """A stand-in for huggingface_hub that keeps its calls."""
    module: Any = types.ModuleType("huggingface_hub")
    module.calls = []

    def hf_hub_download(repo_id, filename, **options):
        module.calls.append((repo_id, filename, options))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def create_repo(repo_id, **options):
        module.calls.append((repo_id, options))
        return types.SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_file(**options):
        module.calls.append(options)
        return "commit"

    module.hf_hub_download, module.create_repo, module.upload_file = hf_hub_download, create_repo, upload_file
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_loading_from_the_hub_passes_its_options_on(monkeypatch, saved):
    module = hub(monkeypatch, saved / "scheduler" / SCHEDULER_CONFIG_NAME)
    options: dict[str, Any] = dict(  # noqa: C408
        cache_dir="c", local_dir="l", force_download=True, token="t", local_files_only=True, revision="r"
    )
    options |= {"proxies": {"a": "b"}, "user_agent": {"x": "y"}, "local_dir_use_symlinks": "auto"}
    made = OURS.A.from_pretrained("owner/name", subfolder="scheduler", eta=0.5, **options)
    assert (made.config.steps, made.config.eta) == (3, 0.5)
    OURS.A.from_pretrained("name")
    expected = ("owner/name", SCHEDULER_CONFIG_NAME, {"subfolder": "scheduler", **options})
    assert module.calls == [expected, ("name", SCHEDULER_CONFIG_NAME, {"subfolder": None})]


def test_the_real_hub_client_reads_its_cache(tmp_path, saved):
    repo = tmp_path / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (saved / "scheduler").rename(
        (repo / "snapshots" / COMMIT).mkdir(parents=True) or repo / "snapshots" / COMMIT / "s"
    )
    options = {"cache_dir": tmp_path, "local_files_only": True, "subfolder": "s"}
    config, unused, commit = OURS.A.load_config("owner/name", True, True, **options)
    assert config["steps"] == 3 and unused == {} and commit == COMMIT
    assert OURS.A.from_pretrained("owner/name", **options).config.steps == 3
    with pytest.raises(OSError, match="'owner/other' from the Hub: it is not in the cache"):
        OURS.A.from_pretrained("owner/other", **options)
    with pytest.raises(OSError, match="HFValidationError"):
        OURS.A.from_pretrained("owner/a--b", **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RepositoryNotFoundError", "no such repository"),
        ("GatedRepoError", "no access to it"),
        ("RevisionNotFoundError", "no such revision"),
        ("EntryNotFoundError", "no such file"),
        ("LocalEntryNotFoundError", "not in the cache"),
    ],
)
def test_errors_of_the_hub_are_explained(monkeypatch, name, message):
    import huggingface_hub.errors as errors

    kind = getattr(errors, name)
    error = kind.__new__(kind)  # their constructors want an HTTP response
    hub(monkeypatch, error)
    with pytest.raises(
        OSError, match=f"scheduler_config.json of 'owner/name' from the Hub: .*{message}"
    ) as caught:
        OURS.A.from_pretrained("owner/name")
    assert caught.value.__cause__ is error


def test_other_errors_of_the_hub_are_quoted(monkeypatch):
    hub(monkeypatch, RuntimeError("strange"))
    with pytest.raises(OSError, match="RuntimeError: strange"):
        OURS.A.from_pretrained("owner/name")


def test_the_hub_without_its_client_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (lambda: OURS.A.from_pretrained("owner/name"), lambda: OURS.A().push_to_hub("name")):
        with pytest.raises(ImportError, match=r'pip install "anystep\[hub\]"'):
            use()
    OURS.A().save_pretrained(tmp_path)
    assert OURS.A.from_pretrained(tmp_path).config.steps == 1000


def test_pushing_uploads_the_config_alone(monkeypatch, tmp_path):
    module, made = hub(monkeypatch), OURS.A(steps=3)
    assert made.push_to_hub("name", private=True, token="t", create_pr=True, subfolder="s") == "commit"
    made.save_pretrained(tmp_path / "folder", push_to_hub=True, commit_message="hello")
    made.save_pretrained(tmp_path / "folder", push_to_hub=True, repo_id="other")
    upload = {"path_or_fileobj": made.to_json_string().encode(), "path_in_repo": SCHEDULER_CONFIG_NAME}
    pull = {"token": "t", "create_pr": True, "commit_message": "Upload scheduler", "repo_id": "me/name"}
    plain = {"token": None, "create_pr": False, "commit_message": "Upload scheduler"}
    assert module.calls == [
        ("name", {"private": True, "token": "t", "exist_ok": True}),
        upload | pull | {"path_in_repo": f"s/{SCHEDULER_CONFIG_NAME}"},
        ("folder", {"private": None, "token": None, "exist_ok": True}),
        upload | plain | {"repo_id": "me/folder", "commit_message": "hello"},
        ("other", {"private": None, "token": None, "exist_ok": True}),
        upload | plain | {"repo_id": "me/other"},
    ]
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        made.save_pretrained(tmp_path, push_to_hub=True, colour=1)
    assert len(module.calls) == 6


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = OURS.A(steps=3)
        OURS.B.from_config(copy.deepcopy(made).config, rho=2.0)
