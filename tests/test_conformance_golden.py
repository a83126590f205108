"""Golden vectors: well formed, right by a second evaluation, true of the present code, and enough for a port without anystep."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest

import anystep_conformance
from anystep import Plan
from anystep_conformance.exact import bounded, exact_row
from anystep_conformance.subjects import SUBJECTS, random_plan
from anystep_conformance.vectors import check_vector, make_vector, read_vectors, schema, slug, write_vectors

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(anystep_conformance.__file__).parent / "golden"
VECTORS = read_vectors()
vectors = pytest.mark.parametrize("name", VECTORS)


def test_every_subject_has_a_vector_and_every_vector_a_subject():
    missing = {f"{slug(subject.name)}.json" for subject in SUBJECTS} ^ set(VECTORS)
    assert not missing, "python -m anystep_conformance golden --out conformance/anystep_conformance/golden"
    assert len({slug(subject.name) for subject in SUBJECTS}) == len(SUBJECTS)


def test_they_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000


@vectors
def test_the_schema_holds(name):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(VECTORS[name], schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v.pop("plan"),
        lambda v: v.update(format="anystep golden 2"),
        lambda v: v["plan"].update(threshold={"kind": "Clip"}),
        lambda v: v["plan"]["alpha"].append("1.0"),
        lambda v: v["trajectory"]["calls"].clear(),
        lambda v: v["trajectory"]["calls"][0].pop("noises"),
        lambda v: v.update(memories=-1),
    ],
)
def test_the_schema_refuses_what_is_damaged(damage):
    jsonschema = pytest.importorskip("jsonschema")
    vector = copy.deepcopy(next(iter(VECTORS.values())))
    damage(vector)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(vector, schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_the_present_code_agrees(subject):
    if f"{slug(subject.name)}.json" in VECTORS:
        check_vector(VECTORS[f"{slug(subject.name)}.json"], subject)


@vectors
def test_numbers_survive_the_text(name):
    text = (FOLDER / name).read_text()
    plan = Plan.from_json(json.dumps(VECTORS[name]["plan"]))
    assert json.loads(plan.to_json()) == VECTORS[name]["plan"]
    for number in re.findall(r"-?\d+\.\d+(?:e[-+]\d+)?", text):
        assert repr(float(number)) == number, "the shortest decimal that reads back"


@vectors
def test_a_second_evaluation_agrees(name):
    """In mpmath, 50 digits, written for this test from the schema's words alone: rounded once, the same float64."""
    vector, run = VECTORS[name], VECTORS[name]["trajectory"]
    plan, batch, memories = vector["plan"], run["start"], [run["start"]] * vector["memories"]
    with mpmath.workdps(50):
        for i, call in enumerate(run["calls"]):
            for b, x in enumerate(batch):
                columns = [mpmath.matrix(column) for column in (x, call["model_output"][b])]
                a, c = map(mpmath.mpf, plan["estimate"][i])
                estimate = limited(plan["threshold"], a * columns[0] + c * columns[1])
                columns += [
                    estimate,
                    *(mpmath.matrix(v[b]) for v in memories),
                    *(mpmath.matrix(z[b]) for z in call["noises"]),
                ]
                assert [float(v) for v in estimate] == call["estimate"][b]
                scale = mpmath.mpf(plan["input_scale"][i])
                assert [float(scale * v) for v in columns[0]] == call["model_input"][b]
                for row, wanted in zip(plan["update"][i], (call["sample"], *call["memories"]), strict=True):
                    total = mpmath.matrix(len(x), 1)
                    for coefficient, column in zip(row, columns, strict=True):
                        total += mpmath.mpf(coefficient) * column
                    assert [float(v) for v in total] == wanted[b]
            batch, memories = call["sample"], call["memories"]


def limited(threshold, x0):
    if threshold is None:
        return x0
    if threshold["kind"] == "Clip":
        return mpmath.matrix([max(min(v, threshold["bound"]), -threshold["bound"]) for v in x0])
    sizes = sorted(abs(v) for v in x0)
    place = mpmath.mpf(threshold["ratio"]) * (len(sizes) - 1)
    below = int(mpmath.floor(place))
    rest = place - below
    s = sizes[below] * (1 - rest) + (sizes[below + 1] * rest if rest else 0)
    s = max(mpmath.mpf(1), min(s, mpmath.mpf(threshold["max_value"])))
    return mpmath.matrix([max(-s, min(s, v)) / s for v in x0])


@vectors
def test_the_run_is_worth_testing_with(name):
    vector = VECTORS[name]
    calls = vector["trajectory"]["calls"]
    assert len(calls) == len(vector["plan"]["timesteps"]) >= 4
    samples = np.array([vector["trajectory"]["start"], *(call["sample"] for call in calls)])
    assert np.isfinite(samples).all() and (samples[1:] != samples[:-1]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("part", ["sample", "estimate", "model_input", "memories"])
def test_a_wrong_number_is_noticed(part):
    vector = copy.deepcopy(VECTORS["lms.json"])
    told = vector["trajectory"]["calls"][2]
    values = told[part][0] if part == "memories" else told[part]
    values[1][2] += 1e-13 * max(abs(values[1][2]), 100.0)
    with pytest.raises(AssertionError, match="the step at call 2 differs in 1 of 6"):
        check_vector(vector)


@pytest.mark.parametrize("table", ["timesteps", "alpha", "sigma", "input_scale", "estimate", "update"])
def test_a_wrong_plan_is_noticed(table):
    subject = next(subject for subject in SUBJECTS if subject.name == "LMS")
    vector = copy.deepcopy(VECTORS["lms.json"])
    values = np.array(vector["plan"][table])
    values.flat[np.argmax(np.abs(values))] *= 1 + 1e-11
    vector["plan"][table] = values.tolist()
    with pytest.raises(AssertionError, match=f"LMS: the plan's {table} is not the vector's|the step at call"):
        check_vector(vector, subject)


def test_a_wrong_step_is_not_written(monkeypatch, tmp_path):
    from anystep_conformance import vectors

    stepped = vectors.call
    monkeypatch.setattr(vectors, "call", lambda *given: tuple(x * (1 + 1e-14) for x in stepped(*given)))
    with pytest.raises(AssertionError, match="the step at call 0 differs"):
        write_vectors(tmp_path, SUBJECTS[:1])
    assert list(tmp_path.iterdir()) == []


def test_writing_gives_what_is_in_the_package(tmp_path):
    few = [subject for subject in SUBJECTS if f"{slug(subject.name)}.json" in VECTORS][:3]
    for path, subject in zip(write_vectors(tmp_path, few), few, strict=True):
        written, packaged = json.loads(path.read_text()), VECTORS[path.name]
        assert {key: written[key] for key in ("format", "name", "steps", "parts")} == {
            key: packaged[key] for key in ("format", "name", "steps", "parts")
        }
        check_vector(written, subject)
        assert written == make_vector(subject)


def test_the_command_checks_the_package():
    command = [sys.executable, "-m", "anystep_conformance", "golden", "--subject", "DDIM"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed, 0 failed" in done.stdout, done.stdout + done.stderr


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The program in docs/conformance.md."""
    page = ROOT / "docs" / "conformance.md"
    if not page.exists():
        pytest.skip("not a checkout: no docs beside the package")
    path = tmp_path_factory.mktemp("port") / "port.py"
    path.write_text(page.read_text().split("<!-- port -->\n```python\n")[1].split("```")[0])
    return path


def run_port(port, *paths):
    return subprocess.run(
        [sys.executable, "-I", str(port), *map(str, paths)], capture_output=True, text=True, cwd=port.parent
    )


def test_a_port_without_anystep_passes(port):
    assert "anystep" not in port.read_text() and "numpy" not in port.read_text()
    done = run_port(port, *(FOLDER / name for name in VECTORS))
    assert done.stdout.strip() == f"{len(VECTORS)} vectors agree", done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('plan["update"][i]]\n    scales', 'plan["update"][max(i - 1, 0)]]\n    scales'),
        ('s = min(max(s, 1.0), threshold["max_value"])', "s = max(s, 1.0) * 1.0000001"),
        ('plan["estimate"][i][1] * b)', 'plan["estimate"][i][1] * b * (1 + 1e-13))'),
    ],
)
def test_a_wrong_port_fails(port, right, wrong, tmp_path):
    text = port.read_text()
    assert text.count(right) == 1
    broken = tmp_path / "port.py"
    broken.write_text(text.replace(right, wrong))
    assert "AssertionError" in run_port(broken, *(FOLDER / name for name in VECTORS)).stderr


# Exact arithmetic


def test_exact_rows_are_floats_up_to_rounding():
    for seed in range(20):
        plan = random_plan(3, seed % 3, seed % 3, None, seed=seed)
        rng = np.random.default_rng(seed)
        columns = rng.normal(size=(2 + plan.memories + plan.noises, 5))
        found = exact_row(
            plan, 1, columns[0], columns[1], columns[2 : 2 + plan.memories], columns[2 + plan.memories :]
        )
        x0 = plan.estimate[1] @ columns[:2]
        wanted = plan.update[1] @ np.stack([*columns[:2], x0, *columns[2:]])
        np.testing.assert_allclose(np.array(found.outputs, float), wanted, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(np.array(found.model_input, float), plan.input_scale[1] * columns[0])


def test_an_unknown_bound_is_not_guessed():
    from anystep import Threshold

    class Other(Threshold):
        def __call__(self, x0):
            return x0

    with pytest.raises(NotImplementedError, match="expected Clip or DynamicThreshold"):
        bounded(Other(), [1.0])
