"""The planted errors of mutants.py still apply, their killers exist, a few of them really die, and a harmless one survives.

`python tests/mutants.py` runs them all.
"""

import os
import subprocess
import sys

import pytest

from mutants import BY_ID, MUTANTS, ROOT, Mutant, run, sound

FAST = (
    "epsilon-forgets-alpha",
    "zero-snr-not-rescaled",
    "trailing-off-by-one",
    "eta-on-the-variance",
    "posterior-at-the-wrong-end",
    "threshold-left-out",
)


def test_enough_of_them():
    assert len(MUTANTS) == len(BY_ID) >= 40
    rooms = {mutant.file.split("/")[0] for mutant in MUTANTS}
    assert rooms >= {
        "predictions.py",
        "plan.py",
        "schedules",
        "spacings",
        "samplers",
        "_combination.py",
        "forward.py",
    }


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_text_occurs_once(mutant):
    assert mutant.path.read_text().count(mutant.original) == 1
    assert mutant.mutated != mutant.original and "\n" not in mutant.original + mutant.mutated
    assert mutant.killers


def test_killers_exist():
    killers = sorted({str(ROOT / "tests" / killer) for mutant in MUTANTS for killer in mutant.killers})
    paths = [str(ROOT / part) for part in ("core", "backends", "conformance", "tests")]
    options = ["-p", "no:cacheprovider", "--noconftest", "-c", str(ROOT / "pyproject.toml")]
    options += ["-o", "addopts=--import-mode=importlib", "--collect-only", "-q"]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *killers],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_killers_pass_without_a_mutant():
    assert sound([BY_ID[name] for name in FAST]) == []


@pytest.mark.parametrize("name", FAST)
def test_dies(name):
    assert run(BY_ID[name]) == "killed"


def test_verdicts_are_the_tests_own():
    """A harmless change survives, and what cannot be run is no kill."""
    died = BY_ID["eta-on-the-variance"]
    assert (
        run(Mutant("harmless", died.file, died.original, died.original + " * 1.0", died.killers))
        == "survived"
    )
    assert (
        run(Mutant("nobody", died.file, died.original, "", ("test_samplers.py::test_of_nothing",))) == "error"
    )
    with pytest.raises(ValueError, match="occurs 0 times"):
        run(Mutant("gone", died.file, "no such text", "", died.killers))
