"""The ``anystep`` command, as a user types it."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from anystep import cli
from anystep.demo import digits
from anystep.demo.drawing import SCHEDULERS, draw_digits, grid


def run(monkeypatch, capsys, *words):
    """Exit code and all that was printed."""
    monkeypatch.setattr(sys, "argv", ["anystep", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    return stop.value.code, " ".join((printed.out + printed.err).split())


def test_sample_writes_a_grid_and_says_what_it_took(tmp_path, monkeypatch, capsys):
    out = tmp_path / "digits.png"
    code, text = run(
        monkeypatch, capsys, "sample", "--out", out, "--steps", 3, "--count", 12, "--class", 3, "--class", 8
    )
    assert code == 0
    assert "12 digits, 3 steps, " in text
    assert "model calls" in text
    assert "held-out digits" in text
    picture = np.asarray(Image.open(out))
    assert picture.shape == ((2 * 9 + 1) * 8, (10 * 9 + 1) * 8)
    assert picture.min() < 64
    assert picture.max() > 192


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "--scheduler", "nonsense"], "scheduler='nonsense'.*ddim"),
        (["sample", "--steps", "0"], "num_inference_steps=0"),
        (["sample", "--steps", "1001"], "num_inference_steps=1001"),
        (["sample", "--count", "0"], "count=0"),
        (["sample", "--class", "11"], "11"),
        (["sample", "--backend", "nonsense"], "backend='nonsense'"),
        (["sample", "--device", "cuda:7"], "cuda:7"),
        (["sample", "--dtype", "int8"], "int8"),
        (["sample", "--out", "/no/such/folder/x.png"], "/no/such/folder"),
        (["compare", "--steps", "5,x"], "steps='5,x'"),
        (["compare", "--schedulers", "ddim,nonsense"], "nonsense"),
    ],
)
def test_what_is_typed_wrongly_is_said_in_one_line_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    code, text = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "Traceback" not in text
    assert re.search(message, text), text
    assert not list(tmp_path.iterdir())


def test_compare_draws_every_cell(tmp_path, monkeypatch, capsys):
    out = tmp_path / "compare.png"
    code, text = run(
        monkeypatch,
        capsys,
        "compare",
        "--steps",
        "2,4",
        "--schedulers",
        "ddim,euler",
        "--out",
        out,
        "--count",
        20,
    )
    assert code == 0
    assert text.count("%") >= 4
    assert np.asarray(Image.open(out)).min() < 64


def test_backends_lists_every_backend(monkeypatch, capsys):
    code, text = run(monkeypatch, capsys, "backends")
    assert code == 0
    for name in ("numpy", "torch", "jax", "cupy", "array_api_strict"):
        assert name in text


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_draws_what_is_asked_for(name):
    """A classifier of real digits reads at least 90 % as often as on real held-out digits."""
    drawing = draw_digits(name, 25, count=200)
    quality = digits.judge(drawing.images, drawing.labels)
    assert quality.accuracy >= 0.9 * quality.real_accuracy
    assert quality.distance < 3 * quality.real_distance


def test_the_seed_gives_the_same_digits_on_every_backend():
    """The scheduler's arithmetic is bit-equal; the model's matrix products are not."""
    pictures = [
        draw_digits("ddpm", 5, backend_name=b, count=10).images
        for b in ("numpy", "torch", "jax", "array_api_strict")
    ]
    for picture in pictures[1:]:
        np.testing.assert_allclose(picture, pictures[0], atol=2e-3)
    assert abs(draw_digits("ddpm", 5, seed=1, count=10).images - pictures[0]).max() > 0.1


def test_grid_is_dark_ink_on_white():
    sheet = grid(
        np.stack([np.full((1, 8, 8), -1.0), np.full((1, 8, 8), 1.0)]).astype(np.float32), columns=2, zoom=1
    )
    assert (sheet[1:9, 1:9] == 255).all()
    assert (sheet[1:9, 10:18] == 0).all()


def test_a_missing_library_is_named_with_the_command_that_installs_it():
    code = "import sys; sys.modules['torch'] = None\nfrom anystep._array import backend\nbackend('torch')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "anystep[torch]"' in result.stderr


def test_a_missing_library_says_what_to_install(monkeypatch, capsys):
    """Brackets and all: they are not taken for markup."""

    def absent(name):
        raise ImportError(f'backend={name!r} needs it: pip install "anystep[{name}]".', name=name)

    monkeypatch.setattr(cli, "backend", absent)
    monkeypatch.setattr(cli, "draw_digits", lambda *args, **options: absent("torch"))
    code, text = run(monkeypatch, capsys, "sample", "--backend", "torch", "--out", "never.png")
    assert code == 2 and 'pip install "anystep[torch]"' in text
    assert "[jax]" in run(monkeypatch, capsys, "backends")[1].replace(" ", "")
