"""Train the token model of the handwritten digits, write core/anystep/demo/digit_tokens.npz, and draw docs/vq_digits.png.

    python examples/train_digit_tokens.py

takes a few minutes on one CPU core; needs torch, scikit-learn and pillow. The result depends on the seed, and in the
last bits on the processor and the number of threads. The model is trained through `anystep.demo.tokens.network`, the
forward pass that is shipped, so there is one definition of it. With `--no-train` the installed file is measured and drawn.

Data: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0, as distributed by scikit-learn.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import dropout
from train_digits import annealed, normal, progress, split, write

from anystep.demo import digits
from anystep.demo._denoiser import NO_CLASS
from anystep.demo.drawing import grid
from anystep.demo.tokens import CLASSES, draw_tokens, images, load, network
from anystep.schedulers import VQDiffusionScheduler
from anystep.schedules import MaskAndReplace

PROCESS = MaskAndReplace(CLASSES)
MASK = CLASSES - 1
PICTURE = Path(__file__).parents[1] / "docs" / "vq_digits.png"
FREQUENCIES = np.geomspace(1, 50, 16) / 100  # radians per timestep
WIDTH, HIDDEN, BLOCKS, EMBEDDING, TOKEN = 256, 192, 3, 64, 8


def evidence():
    """Log of how much likelier a token that is seen is under its own class than under another, for each timestep."""
    a, b, _ = (table[:-1] for table in PROCESS.cumulative)
    return np.log((a + b) / b)


def model_weights(generator):
    """Initial weights: grey levels begin in their order, the blocks near the identity, the output at zero."""
    waves, level = 2 * len(FREQUENCIES), torch.linspace(-1, 1, MASK)
    token = 0.1 * torch.randn((CLASSES, TOKEN), generator=generator)
    token[:MASK, :4] += torch.stack([level, level**2, torch.sin(3 * level), torch.cos(3 * level)], 1)
    head = 0.1 * torch.randn((TOKEN, MASK), generator=generator)
    head[:4] += torch.stack([level, level**2, torch.sin(3 * level), torch.cos(3 * level)])
    return {
        "time_in": normal(waves, EMBEDDING, generator=generator),
        "time_bias": torch.zeros(EMBEDDING),
        "time_out": normal(EMBEDDING, EMBEDDING, generator=generator),
        "label": torch.randn((NO_CLASS + 1, EMBEDDING), generator=generator),
        "token": token,
        "in": normal(64 * TOKEN, WIDTH, generator=generator),
        "in_bias": torch.zeros(WIDTH),
        "film": normal(BLOCKS, EMBEDDING, 2 * WIDTH, generator=generator, scale=0.1),
        "film_bias": torch.zeros(BLOCKS, 2 * WIDTH),
        "up": normal(BLOCKS, WIDTH, HIDDEN, generator=generator),
        "up_bias": torch.zeros(BLOCKS, HIDDEN),
        "down": normal(BLOCKS, HIDDEN, WIDTH, generator=generator, scale=0.1),
        "out": torch.zeros(WIDTH, 64 * TOKEN),
        "out_bias": torch.zeros(64 * TOKEN),
        "head": head,
        "head_bias": torch.zeros(64, MASK),
    }


def noisy(x0, t, generator):
    """x_t of q(x_t | x_0), one timestep per sample."""
    a, b, _ = (torch.tensor(table, dtype=torch.float32)[t][:, None] for table in PROCESS.cumulative)
    u, other = torch.rand(x0.shape, generator=generator), torch.randint(MASK, x0.shape, generator=generator)
    return torch.where(u < a, x0, torch.where(u < a + MASK * b, other, MASK))


def train_model(tokens, labels, steps, seed, size=256, peak=2e-3, drop=0.3, decay=0.999):
    """Weights averaged over the last thousand or so steps of AdamW, on the cross-entropy of each token that noise took.

    Masked tokens count in inverse proportion to how many of them a timestep has, as in the variational bound; others a little.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout has no generator of its own
    weights = {name: x.requires_grad_() for name, x in model_weights(generator).items()}
    average = {name: x.detach().clone() for name, x in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=peak, weight_decay=0.1, betas=(0.9, 0.99))
    fixed = {"frequencies": torch.tensor(FREQUENCIES).float(), "evidence": torch.tensor(evidence()).float()}
    masked_share = torch.tensor(PROCESS.cumulative[2][:-1], dtype=torch.float32)
    recent = []
    for step in progress(steps, "token model"):
        annealed(optimizer, step, steps, peak)
        chosen = torch.randint(len(tokens), (size,), generator=generator)
        x0, wanted = tokens[chosen], labels[chosen]
        wanted = torch.where(torch.rand(size, generator=generator) < 0.1, NO_CLASS, wanted)
        t = ((torch.arange(size) + torch.rand(size, generator=generator)) * (100 / size)).long().clamp(max=99)
        x = noisy(x0, t, generator)
        # Weights are dropped instead of activations, so that the shipped forward pass needs no training mode.
        thinned = weights | {name: dropout(weights[name], drop) for name in ("in", "up", "down", "out")}
        loss = -network(thinned | fixed, x, t, wanted).gather(1, x0[:, None, :])[:, 0]
        share = (1 / (masked_share[t] + 0.05))[:, None]
        loss = (loss * torch.where(x == MASK, share, 0.1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent.append(loss.item())
        if step % 500 == 499:
            print(f"step {step + 1}: loss {np.mean(recent[-500:]):.4f}", flush=True)
        part = 1 - min(decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), [x.detach() for x in weights.values()], part)
    return average | fixed


def train(path, steps, seed):
    """Train and write the file."""
    pixels, labels, _, _ = split()
    weights = train_model(torch.tensor(pixels.astype(np.int64)), torch.tensor(labels), steps, seed)
    exact = ("frequencies", "evidence")  # half precision would detune them
    write(
        path,
        {name: x.numpy().astype(np.float32 if name in exact else np.float16) for name, x in weights.items()},
    )
    print(f"{path}: {path.stat().st_size} bytes")


def evaluate(count, seed):
    """Print what the judge says of samples by each way to draw."""
    print(f"{'draws':8}{'steps':>6}{'accuracy':>10}{'distance':>10}   (real: accuracy, distance)")
    for sparse in (False, True):
        for steps in (5, 10, 25, 50, 100):
            drawing = draw_tokens(steps, count=count, seed=seed, sparse=sparse)
            quality = digits.judge(drawing.images, drawing.labels)
            print(
                f"{'sparse' if sparse else 'Gumbel':8}{steps:6}{quality.accuracy:10.3f}{quality.distance:10.3f}"
                f"   ({quality.real_accuracy:.4f}, {quality.real_distance:.3f})",
                flush=True,
            )


def picture(path, seed):
    """Ten of each digit with 100 steps, beside the states at a few timesteps on the way, masks in grey."""
    labels = np.arange(10)
    scheduler, model, rng = VQDiffusionScheduler(CLASSES), load(), np.random.default_rng(seed)
    x, rows = np.full((10, 64), MASK), []
    for t in scheduler.timesteps:
        if t in (85, 65, 45, 25):
            rows.append(images(x))
        x = scheduler.step(model(x, int(t), labels), t, x, generator=rng).prev_sample
    way = grid(np.concatenate([*rows, images(x)]))
    drawn = grid(draw_tokens(100, seed=seed).images)
    sheet = np.full((max(len(way), len(drawn)), way.shape[1] + 24 + drawn.shape[1]), 255, np.uint8)
    sheet[: len(way), : way.shape[1]] = way
    sheet[: len(drawn), -drawn.shape[1] :] = drawn
    Image.fromarray(sheet).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=digits.folder() / "digit_tokens.npz", help="file to write"
    )
    parser.add_argument("--picture", type=Path, default=PICTURE, help="PNG file to write")
    parser.add_argument("--steps", type=int, default=2500, help="training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for torch")
    parser.add_argument(
        "--samples", type=int, default=1000, help="digits drawn for each line of the evaluation"
    )
    parser.add_argument("--no-train", action="store_true", help="only evaluate the installed file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.no_train:
        train(args.out, args.steps, args.seed)
    if args.out == digits.folder() / "digit_tokens.npz":
        evaluate(args.samples, args.seed)
        picture(args.picture, args.seed)


if __name__ == "__main__":
    main()
