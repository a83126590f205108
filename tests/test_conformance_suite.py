"""The suite as a program: what it runs, what it says, how it ends, and that a stranger's scheduler and array library join it."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
from html.parser import HTMLParser
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import pytest

from anystep import DDIM, BetaSchedule, Leading
from anystep_conformance import finding
from anystep_conformance.case import MODES, Case, Result
from anystep_conformance.checks import run
from anystep_conformance.finding import find_libraries, find_subjects
from anystep_conformance.libraries import FLOATS, LIBRARIES, library
from anystep_conformance.report import overview, shown, to_html, to_json, to_junit, tone, verdict
from anystep_conformance.subjects import SUBJECTS
from anystep_conformance.suite import plan_suite, provenance

ROOT = Path(__file__).resolve().parents[1]
PLAN = DDIM().plan(Leading().levels(BetaSchedule.named("linear"), steps=3), "epsilon")
RESULTS = [
    Result("DDIM", "numpy", "float32", "eager", "passed", 0.0, seconds=0.1),
    Result("DDIM", "jax", "float32", "compile", "passed", 0.97, "eps"),
    Result(
        "<b>&\x00",
        "jax",
        "float32",
        "eager",
        "failed",
        float("inf"),
        check="values",
        reason='differs "by" <far>\x1b',
    ),
    Result("LMS", "jax", "float64", "eager", "gap", 1.0, check="values", reason="a known ulp"),
    Result("(all)", "cupy", "", "", "not run", reason="no device on this machine"),
]


def conformance(*arguments, path=(), cwd=None):
    """The command, in a process of its own."""
    place = os.pathsep.join([*map(str, path), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-m", "anystep_conformance", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": place, "COLUMNS": "200", "JAX_PLATFORMS": "cpu"},
        cwd=cwd,
        check=False,
    )


# What is run


def test_every_subject_is_run_on_every_library_in_float32_and_float64():
    cases = plan_suite(backends=["numpy", "array_api_strict"]).cases
    for entry in (one for one in LIBRARIES if one.module in ("numpy", "array_api_strict")):
        for dtype in set(entry.dtypes) & {"float32", "float64"}:
            names = {
                c.subject.name
                for c in cases
                if (c.library.name, c.dtype, c.mode) == (entry.name, dtype, "eager")
            }
            assert {subject.name for subject in SUBJECTS} < names, (entry.name, dtype)
    assert {case.dtype for case in cases if case.library.name == "numpy"} == set(FLOATS)


def test_transforms_are_run_on_one_subject_of_each_structure_and_all_on_all():
    pytest.importorskip("jax")
    few, every = (plan_suite(backends=["jax"], everything=flag).cases for flag in (False, True))
    for mode in ("compile", "scan", "vmap"):
        names = [{case.subject.name for case in cases if case.mode == mode} for cases in (few, every)]
        assert 6 <= len(names[0]) < len(names[1]) == len(SUBJECTS)
        plans = [subject.plan(8) for subject in SUBJECTS if subject.name in names[0]]
        assert {plan.memories > 0 for plan in plans} == {plan.noises > 0 for plan in plans} == {True, False}
        assert {type(plan.threshold) for plan in plans} == {type(s.plan(8).threshold) for s in SUBJECTS}
    assert {case.id for case in few} < {case.id for case in every}


def test_choices_narrow():
    cases = plan_suite(backends=["numpy"], dtypes=["float16"], modes=["index"], subjects=["LMS"]).cases
    assert [case.id for case in cases] == [
        "LMS | numpy | float16 | index",
        "LMS | read-only numpy | float16 | index",
    ]
    assert {case.mode for case in plan_suite(backends=["jax"], modes=["jit"]).cases} <= {"compile", "eager"}
    (only,) = find_libraries(["array_api_strict"], "device1")
    assert only.name == "array_api_strict on device1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backends": ["nothing"]},
            "backend='nothing': expected package.module:attribute or one of array_api_strict",
        ),
        (
            {"backends": ["json:nothing"]},
            "backend='json:nothing': .*expected package.module:attribute that can be imported",
        ),
        (
            {"backends": ["json:dumps"]},
            "backend is a function: expected a Library, an adapter or an array-API namespace",
        ),
        ({"modes": ["fast"]}, "mode='fast': expected one of eager, fused, index"),
        ({"dtypes": ["float8"]}, "dtype='float8': expected one of float16"),
        ({"subjects": ["nothing"]}, "subject='nothing': expected package.module:attribute or one of 'DDIM'"),
        ({"subjects": ["nowhere:x"]}, "subject='nowhere:x': No module named 'nowhere'"),
        ({"subjects": ["math:pi"]}, "subject='pi' is a float: expected a Subject, a Plan, or a function"),
        ({"subjects": ["DDIM", "DDIM"]}, "subject='DDIM' is there twice"),
        ({"backends": ["torch"], "device": "cuda:99"}, "device='cuda:99': PyTorch has"),
    ],
)
def test_a_name_that_matches_nothing_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        plan_suite(**{"backends": ["numpy"]} | options)


def test_a_library_on_a_device_is_made_by_its_adapter():
    pytest.importorskip("torch")
    from anystep_backends import backend

    entry = finding._on(backend("torch"), "cpu")
    assert entry.name == "torch on cpu" and entry.dtypes == FLOATS and entry.adapter is backend("torch")
    result = run(Case(SUBJECTS[0], entry, "float32", "eager"))
    assert (result.outcome, result.distance) == ("passed", 0.0), result.reason


def test_a_library_that_is_not_here_is_never_passed(monkeypatch):
    class NoDevice:
        name, version = "cupy", "14.2.0"

        def devices(self):
            return ()

    monkeypatch.setattr(finding, "load_backend", lambda name: NoDevice())
    (found,) = find_libraries(["cupy"])
    assert (found.outcome, found.library) == ("not run", "cupy")
    assert found.reason == "cupy 14.2.0 has no device on this machine: nothing was run on it"

    def missing(name):
        raise ImportError("backend='cupy' needs cupy", name="cupy")

    monkeypatch.setattr(finding, "load_backend", missing)
    assert next(iter(find_libraries(["cupy"]))).reason == "backend='cupy' needs cupy"


def test_subjects_of_any_kind(monkeypatch):
    import types

    shop = types.ModuleType("shop")
    shop.plan, shop.function, shop.many = PLAN, lambda steps: PLAN, [SUBJECTS[0], SUBJECTS[1]]
    monkeypatch.setitem(sys.modules, "shop", shop)
    names = [subject.name for subject in find_subjects(["shop:plan", "shop:function", "shop:many", "LMS"])]
    assert names == ["plan", "function", SUBJECTS[0].name, SUBJECTS[1].name, "LMS"]
    assert all(subject.plan(8) == PLAN for subject in find_subjects(["shop:plan", "shop:function"]))


# What it says


def test_the_verdict_and_the_overview():
    assert verdict(RESULTS) == "2 passed, 1 failed, 1 expected gaps; not run here: cupy"
    found = overview(RESULTS)
    assert found["jax"]["eager"][:2] == (1, 2) and found["jax"]["eager"].tone == "failed"
    assert found["numpy"]["eager"].text == "0" and found["numpy"]["eager"].tone == "exact"
    assert found["jax"]["compile"].text == "0.97" and found["jax"]["compile"].unit == "eps"
    assert found["cupy"] == {}
    assert [tone(result) for result in RESULTS] == ["exact", "close", "failed", "gap", "absent"]
    assert shown(float("inf")) == "∞"


def test_json_is_whole_and_has_no_infinity():
    text = to_json(RESULTS, {"numpy": "2"})
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["format"] == "anystep conformance 1" and found["provenance"] == {"numpy": "2"}
    assert [one["outcome"] for one in found["results"]] == [result.outcome for result in RESULTS]
    assert found["bounds"]["eager"]["ulp"] == 0 and set(found["modes"]) == set(MODES)


def test_junit_is_xml_with_a_case_for_each_result():
    root = ElementTree.fromstring(to_junit(RESULTS, {"numpy": "2"}))
    assert [suite.get("name") for suite in root] == ["numpy", "jax", "cupy"]
    jax = root[1]
    assert (jax.get("tests"), jax.get("failures"), jax.get("skipped")) == ("3", "1", "1")
    failure = jax.find("testcase/failure")
    assert failure.get("type") == "values" and "<far>" in failure.get("message")
    assert root[2].find("testcase/skipped").get("message") == "no device on this machine"


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.outside, self.words = [], {}, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.outside += [found[name] for name in ("src", "href") if name in found]
        if "data-about" in found:
            self.cells[found["data-about"]] = found
        if tag not in ("meta", "input", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_and_says_everything():
    page = Page(to_html(RESULTS, {"numpy": "2.4"}, "python -m anystep_conformance"))
    assert page.open == [] and page.outside == [], "closed, and self-contained"
    said = " ".join(page.words)
    for word in (
        verdict(RESULTS),
        "a known ulp",
        "no device on this machine",
        "2.4",
        "python -m anystep_conformance",
    ):
        assert word in said
    assert len(page.cells) == 4
    gap = page.cells["LMS · jax · float64 · eager"]
    assert gap["data-reason"] == "a known ulp" and gap["data-found"] == "gap (values): 1 ulp"
    assert page.cells["DDIM · jax · float32 · compile"]["data-found"] == "passed: 0.97 eps of Σ|c v|"
    assert "<b>&" not in to_html(RESULTS, {}).replace("<b>&", "", 0) or "&lt;b&gt;&amp;" in to_html(
        RESULTS, {}
    )


def test_provenance_names_versions():
    found = provenance([Case(SUBJECTS[0], library("array_api_strict"), "float32", "eager")])
    assert {"python", "platform", "anystep", "numpy", "array_api_strict"} <= set(found)
    assert "unknown" not in found.values()


# The command


def test_the_command_writes_its_reports_and_ends_well(tmp_path):
    files = [tmp_path / name for name in ("r.json", "r.xml", "r.html")]
    options = [
        part
        for kind, path in zip(("--json", "--junit", "--html"), files, strict=True)
        for part in (kind, str(path))
    ]
    ended = conformance("--backend", "numpy", "--mode", "eager,index", "--dtype", "float32", *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(files[0].read_text())
    assert "0 failed" in ended.stdout and found["verdict"] in ended.stdout
    assert len(found["results"]) == len(ElementTree.parse(files[1]).findall(".//testcase"))
    assert len(Page(files[2].read_text()).cells) == len(found["results"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--backend", "nothing"], 2, "error: backend='nothing': expected"),
        (["--subject", "nothing"], 2, "error: subject='nothing': expected"),
        (["--steps", "1"], 2, "Invalid value for '--steps'"),
        (["--backend", "numpy", "--json", "/nowhere/x.json", "--subject", "DDIM"], 2, "error: "),
    ],
)
def test_wrong_usage_ends_with_2_and_one_line(arguments, code, said):
    ended = conformance(*arguments)
    assert ended.returncode == code and said in ended.stderr and "Traceback" not in ended.stderr


def test_a_broken_library_ends_with_1(tmp_path):
    (tmp_path / "broken.py").write_text("import toys\nnamespace = toys.library('ulp')\n")
    place = [tmp_path, ROOT / "tests"]
    ended = conformance("--backend", "broken:namespace", "--subject", "DDIM", path=place)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "failed" in ended.stdout and "1 ulp apart, at most 0 allowed" in ended.stdout
    ended = conformance("--backend", "toys:namespace", "--subject", "DDIM", path=place)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_nothing_that_can_be_run_ends_with_3(tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('planted', name='cupy')\n")
    ended = conformance("--backend", "cupy", path=[tmp_path])
    assert ended.returncode == 3 and "not run" in ended.stdout and "0 passed, 0 failed" in ended.stdout


# Strangers


SAMPLER = '''
"""A scheduler of a third party."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from anystep import VP, Linspace, Sampler
from anystep_conformance.subjects import Subject


@dataclass(frozen=True)
class Blend(Sampler):
    """DDIM written as a weighted mean of where the sample is and where it will be."""

    order: ClassVar[int] = 1

    def rows(self, levels):
        kept = levels.nxt.sigma_t / levels.cur.sigma_t
        x0 = levels.nxt.alpha_t - kept * levels.cur.alpha_t
        return np.stack([kept, np.zeros_like(kept), x0], axis=-1)[:, None, :]


BLEND = Subject("Blend", Blend(), VP(), Linspace(), "v_prediction")
'''


@pytest.fixture
def shop(tmp_path):
    """An installed package ``shop`` with a scheduler and an array library, registered by entry points."""
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "blend.py").write_text(SAMPLER)
    text = (ROOT / "tests" / "toys.py").read_text()
    (package / "arrays.py").write_text(text.replace('"toys"', '"shop"'))
    info = tmp_path / "shop-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[anystep.backends]\nshop = shop.arrays:adapter\n\n[anystep.subjects]\nblend = shop.blend:BLEND\n"
    )
    return tmp_path


def test_a_strangers_scheduler_runs_by_its_dotted_path(shop):
    ended = conformance("--subject", "shop.blend:BLEND", "--backend", "numpy,array_api_strict", path=[shop])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 failed" in ended.stdout


def test_a_strangers_scheduler_and_library_join_by_entry_point(shop, tmp_path):
    report = tmp_path / "r.json"
    ended = conformance(
        "--backend", "shop,numpy", "--json", str(report), "--mode", "eager,index", path=[shop]
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(report.read_text())
    own = [one for one in found["results"] if one["library"] == "shop"]
    assert {one["subject"] for one in own} >= {
        "Blend",
        "DDIM",
        "LMS",
        "(the adapter itself)",
        "(random numbers)",
    }
    assert {one["outcome"] for one in own} == {"passed"} and found["provenance"]["shop"] == "1.0"
    assert any(one["subject"] == "Blend" for one in found["results"] if one["library"] == "numpy")


def test_a_strangers_broken_scheduler_fails(shop):
    text = (shop / "shop" / "blend.py").read_text()
    (shop / "shop" / "broken.py").write_text(
        text
        + textwrap.dedent(
            """
            from anystep import Threshold

            @dataclass(frozen=True)
            class Peeks(Threshold):
                def __call__(self, x0):
                    return x0 * 1.0 if float(x0[0, 0, 0]) > 0 else x0 * 1.0

            BROKEN = Subject("Peeks", Blend(), VP(), Linspace(), "v_prediction", Peeks())
            """
        )
    )
    ended = conformance("--subject", "shop.broken:BROKEN", "--backend", "array_api_strict", path=[shop])
    assert ended.returncode == 1
    assert "laziness" in ended.stdout and "a value was read from the device inside a step" in ended.stdout


# The pytest plug-in


INSTALLED = any(entry.value == "anystep_conformance.plugin" for entry in entry_points(group="pytest11"))


def pytest_run(*arguments, path=(), cwd=None):
    plugin = [] if INSTALLED else ["-p", "anystep_conformance.plugin"]
    place = os.pathsep.join([*map(str, path), *filter(None, sys.path)])
    options = ["-p", "no:cacheprovider", "-q", "-rA", "--rootdir", str(cwd), "-c", os.devnull]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, *options, *arguments, str(cwd)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": place},
        cwd=cwd,
        check=False,
    )


def test_the_suite_as_pytest_items(tmp_path):
    ended = pytest_run(
        "--anystep-backend",
        "numpy,toys:namespace",
        "--anystep-subject",
        "DDIM",
        path=[ROOT / "tests"],
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (
        "anystep[DDIM | numpy | float32 | eager]" in ended.stdout
        and "DDIM | toys | float64 | index" in ended.stdout
    )


def test_a_failure_as_a_pytest_item(tmp_path):
    (tmp_path / "broken.py").write_text("import toys\nnamespace = toys.library('dtype')\n")
    ended = pytest_run(
        "--anystep-backend", "broken:namespace", "--anystep-subject", "DDIM;LMS", "--anystep-dtype", "float32",
        "--anystep-mode", "eager", path=[tmp_path, ROOT / "tests"], cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 1 and "dtype: " in ended.stdout and "expected float32" in ended.stdout
    assert "2 failed" in ended.stdout and "Traceback" not in ended.stdout


def test_the_plug_in_adds_nothing_unasked_and_reports_wrong_names(tmp_path):
    (tmp_path / "test_one.py").write_text(
        "import sys\ndef test_one():\n    assert 'anystep' not in sys.modules\n"
    )
    ended = pytest_run(cwd=tmp_path)
    assert ended.returncode == 0 and "1 passed" in ended.stdout, ended.stdout
    ended = pytest_run("--anystep-backend", "nothing", cwd=tmp_path)
    assert ended.returncode == 4 and "backend='nothing': expected" in ended.stderr


def test_a_library_that_is_not_here_is_skipped_in_pytest(tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('planted', name='cupy')\n")
    ended = pytest_run("--anystep-backend", "cupy", path=[tmp_path], cwd=tmp_path)
    assert "1 skipped" in ended.stdout and "passed" not in ended.stdout


def test_pyproject_registers_the_plug_in():
    file = ROOT / "pyproject.toml"
    if not file.exists():
        pytest.skip("not a checkout")
    entries = tomllib.loads(file.read_text())["project"]["entry-points"]
    assert entries["pytest11"] == {"anystep": "anystep_conformance.plugin"}


# Our own libraries


@pytest.mark.parametrize("name", ["numpy", "array_api_strict", "torch", "jax"])
def test_every_subject_passes(name):
    pytest.importorskip(name)
    modes = ["eager", "fused", "index"]
    results = list(map(run, plan_suite(backends=[name], dtypes=["float32"], modes=modes).cases))
    assert len(results) >= 2 * len(SUBJECTS)
    wrong = [
        f"{result.id}: {result.check}: {result.reason}" for result in results if result.outcome != "passed"
    ]
    assert not wrong, "\n".join(wrong)
    assert all(result.distance in (0.0, None) for result in results if result.mode != "fused")


def test_torch_compiles_with_its_own_compiler():
    pytest.importorskip("torch")
    if not shutil.which("g++"):
        pytest.skip("no g++, which torch's compiler needs")
    result = run(Case(SUBJECTS[0], library("torch"), "float32", "compile"))
    assert result.outcome == "passed", result.reason


def test_cupy_passes_where_there_is_a_gpu_and_is_not_run_elsewhere():
    suite = plan_suite(backends=["cupy"], dtypes=["float32"])
    if suite.absent:
        assert not suite.cases and suite.absent[0].outcome == "not run"
    for case in suite.cases:
        result = run(case)
        assert result.outcome == "passed", f"{result.id}: {result.reason}"


def test_bfloat16_without_ml_dtypes_is_not_run(monkeypatch):
    import importlib.util

    from anystep_conformance import finding

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ml_dtypes" else real(name))
    found = list(finding.find_libraries(["numpy"]))
    results = [one for one in found if isinstance(one, finding.Result)]
    assert {one.dtype for one in results} == {"bfloat16"} and "pip install ml_dtypes" in results[0].reason
    assert all("bfloat16" not in one.dtypes for one in found if not isinstance(one, finding.Result))
