"""What an import costs: each check runs in a fresh interpreter and looks at what was loaded, never at a clock."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import anystep

CORE = Path(anystep.__file__).parent
HEAVY = (
    "torch",
    "jax",
    "jaxlib",
    "cupy",
    "scipy",
    "diffusers",
    "array_api_strict",
    "ml_dtypes",
    "anystep_backends",
    "hypothesis",
    "pytest",
)
ONLY_LATER = {"array_api_compat", "difflib", "hashlib", "json", "logging", "pathlib", "secrets"}
"""What a program that makes a facade on NumPy does without, or gets with its first array."""
FRAMEWORKS = ("torch", "jax", "jaxlib", "cupy")

LOADED = """
import sys
print("LOADED", *sorted({name.split(".")[0] for name in sys.modules}))
"""

PLAN = """
import numpy as np
from anystep import DDIM, BetaSchedule, Leading, estimate, init, sample, scale_input, update
plan = DDIM(eta=1.0).plan(Leading().levels(BetaSchedule.named("linear"), steps=3), "epsilon")
def run(x, noise, rows):
    state = init(plan, x)
    for i in range(3):
        scale_input(plan, i, state.x)
        estimate(plan, i, state.x, x)
        state = update(plan, i, state, x, noise)
    state = update(plan, rows, state, x, noise)
    return state.x
"""
FACADE = """
from anystep import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
def face(x, generator):
    for kind in (DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler):
        scheduler = kind()
        scheduler.set_timesteps(3)
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, scheduler.scale_model_input(x, t), generator=generator).prev_sample
    return x
"""


def loaded(*code):
    """Top-level modules in memory after the code has run in a fresh interpreter."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join((*code, LOADED))],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return set(next(line for line in ended.stdout.splitlines() if line.startswith("LOADED")).split()[1:])


def need(*names):
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def test_import_loads_nothing_heavy():
    found = loaded("import anystep", "anystep.__version__", "dir(anystep)")
    assert found.isdisjoint(HEAVY), found & set(HEAVY)
    assert "anystep" in found


def test_import_of_every_public_name_loads_nothing_heavy():
    found = loaded("import anystep", "for name in anystep.__all__: getattr(anystep, name)")
    assert found.isdisjoint(HEAVY), found & set(HEAVY)


def test_a_facade_loads_what_files_errors_and_warnings_need_with_them():
    found = loaded("from anystep import DDIMScheduler") - loaded("import numpy")
    assert found.isdisjoint(ONLY_LATER), found & ONLY_LATER
    assert "dataclasses" in found


def test_the_check_can_fail():
    assert "decimal" in loaded("import anystep", "import decimal")
    assert "decimal" not in loaded("import sys")


def test_numpy_from_end_to_end_loads_no_framework():
    """Although they are installed."""
    code = "x = np.ones((2, 3)); run(x, x, np.array([0, 1])); sample(lambda x, t: x, plan, x, generator=np.random.default_rng(0))"
    found = loaded(PLAN, code)
    assert found.isdisjoint(FRAMEWORKS), found & set(FRAMEWORKS)


def test_a_facade_on_numpy_loads_no_framework():
    code = "import numpy as np; face(np.ones((2, 3), np.float32), np.random.default_rng(0))"
    found = loaded(FACADE, code)
    assert found.isdisjoint(FRAMEWORKS), found & set(FRAMEWORKS)


def test_torch_loads_no_jax():
    need("torch")
    found = loaded("import torch", PLAN, "x = torch.ones(2, 3); run(x, x, torch.tensor([0, 1]))")
    assert "torch" in found and found.isdisjoint({"jax", "jaxlib", "cupy", "array_api_strict"})


def test_a_facade_on_torch_loads_no_jax():
    need("torch")
    found = loaded("import torch", FACADE, "face(torch.ones(2, 3), torch.Generator().manual_seed(0))")
    assert "torch" in found and found.isdisjoint({"jax", "jaxlib", "cupy", "array_api_strict"})


def test_jax_loads_no_torch():
    need("jax")
    found = loaded("import jax.numpy as jnp", PLAN, "x = jnp.ones((2, 3)); run(x, x, jnp.asarray([0, 1]))")
    assert "jax" in found and found.isdisjoint({"torch", "cupy", "array_api_strict"})


def test_a_facade_on_jax_loads_no_torch():
    need("jax")
    found = loaded("import jax", FACADE, "face(jax.numpy.ones((2, 3)), jax.random.key(0))")
    assert "jax" in found and found.isdisjoint({"torch", "cupy", "array_api_strict"})


def test_backends_load_their_own_library_only():
    need("torch", "jax", "array_api_strict")
    found = loaded("from anystep._array import backend, backend_names", "backend_names()", "backend('numpy')")
    assert found.isdisjoint({*FRAMEWORKS, "array_api_strict"})
    found = loaded("from anystep._array import backend", "backend('torch')")
    assert "torch" in found and found.isdisjoint({"jax", "cupy", "array_api_strict"})


# Without running


STANDARD = set(sys.stdlib_module_names)
ELSEWHERE = {"array_api_compat": {"_array.py"}, "typer": {"cli.py"}, "rich": {"cli.py"}, "PIL": {"cli.py"}}
ELSEWHERE[""] = {"_lazy.py"}  # a module of the package it is told
"""What else than the standard library and NumPy a file of the core may import when it is imported."""
LATE = {"scipy", "huggingface_hub", "rich", "PIL"}
"""What functions may import, each an extra of the distribution."""


def imports(path):
    """(module, whether it is imported when the file is) of every import of a file, also by name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [node.module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            names = [
                next(
                    (part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)),
                    ast.unparse(node),
                )
            ]
        for name in names:
            yield name.split(".")[0], id(node) not in inner


FILES = sorted(CORE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(CORE)) for path in FILES])
def test_core_imports_no_framework(path):
    place = path.relative_to(CORE).as_posix()
    for name, at_once in imports(path):
        known = name in STANDARD or name in ("anystep", "numpy") or place in ELSEWHERE.get(name, ())
        assert known or (name in LATE and not at_once), f"{place} imports {name}"


def test_the_static_check_can_fail(tmp_path):
    path = tmp_path / "core.py"
    path.write_text(
        "import numpy\ndef f(x):\n    import torch.nn\n    importlib.import_module('jax')\n    import_module(x)\n"
    )
    assert list(imports(path)) == [
        ("numpy", True),
        ("torch", False),
        ("jax", False),
        ("import_module(x)", False),
    ]
    path.write_text("from jax import numpy\n__import__('cupy')\n")
    assert list(imports(path)) == [("jax", True), ("cupy", True)]


def test_there_are_files_to_check():
    assert len(FILES) > 20
