"""Train the demo denoiser and its judge on the handwritten digits, and write core/anystep/demo/digits.npz.

    python examples/train_digits.py

takes a few minutes on two CPU cores; needs torch and scikit-learn, and tqdm for progress bars if it is there. The
result depends on the seed, and in the last bits on the processor and the number of threads. The denoiser is trained
through `anystep.demo._denoiser.network`, the forward pass that is shipped, so there is one definition of the model.

Data: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0, as distributed by scikit-learn.
"""

import argparse
import itertools
import math
import os
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy, dropout, mse_loss

from anystep.demo import digits
from anystep.demo._denoiser import NO_CLASS, network

HELD_OUT = 360
SPLIT_SEED = 0  # of the train and held-out split, the same for every training seed
BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHAS_CUMPROD = np.cumprod(1 - BETAS)

FREQUENCIES = np.geomspace(1, 50, 16) / 1000  # radians per timestep: smooth enough for fractional t
WIDTH, HIDDEN, BLOCKS, EMBEDDING = 256, 256, 3, 64


def progress(steps, title):
    """Range with a progress bar if tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        print(title, flush=True)
        return range(steps)
    return tqdm(range(steps), desc=title, mininterval=1)


def split():
    """Train and held-out digits: pixels (N, 64) uint8 in 0 to 16, labels (N,) int64."""
    data = load_digits()
    pixels = data.data.astype(np.uint8)
    train, held_out, labels, held_out_labels = train_test_split(
        pixels, data.target, test_size=HELD_OUT, stratify=data.target, random_state=SPLIT_SEED
    )
    # 0, 1, ..., 9, 0, 1, ...: the first N are then nearly balanced, as the judge's yardstick wants them.
    rank = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    order = np.lexsort((labels, rank))
    return train[order], labels[order].astype(np.int64), held_out, held_out_labels.astype(np.int64)


def images(pixels):
    return torch.tensor(pixels, dtype=torch.float32) / 8 - 1


def normal(*shape, generator, scale=1.0):
    """Weights that keep the variance of their input, times the scale squared."""
    return torch.randn(shape, generator=generator) * scale / math.sqrt(shape[-2])


def denoiser_weights(generator):
    """Initial weights: the blocks begin near the identity, the output at zero."""
    waves = 2 * len(FREQUENCIES)
    return {
        "time_in": normal(waves, EMBEDDING, generator=generator),
        "time_bias": torch.zeros(EMBEDDING),
        "time_out": normal(EMBEDDING, EMBEDDING, generator=generator),
        "label": torch.randn((NO_CLASS + 1, EMBEDDING), generator=generator),
        "in": normal(64, WIDTH, generator=generator),
        "in_bias": torch.zeros(WIDTH),
        "film": normal(BLOCKS, EMBEDDING, 2 * WIDTH, generator=generator, scale=0.1),
        "film_bias": torch.zeros(BLOCKS, 2 * WIDTH),
        "up": normal(BLOCKS, WIDTH, HIDDEN, generator=generator),
        "up_bias": torch.zeros(BLOCKS, HIDDEN),
        "down": normal(BLOCKS, HIDDEN, WIDTH, generator=generator, scale=0.1),
        "out": torch.zeros(WIDTH, 64),
        "out_bias": torch.zeros(64),
    }


def judge_weights(generator):
    return {
        "in": normal(64, 128, generator=generator, scale=1.4),
        "in_bias": torch.zeros(128),
        "middle": normal(128, 32, generator=generator),
        "middle_bias": torch.zeros(32),
        "out": normal(32, 10, generator=generator),
        "out_bias": torch.zeros(10),
    }


def levels(t):
    """alpha_t and sigma_t at fractional times: log-SNR is linear between the whole ones."""
    log_snr = torch.tensor(np.log(ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD)), dtype=torch.float32)
    before = t.floor().long().clamp(max=998)
    between = torch.lerp(log_snr[before], log_snr[before + 1], t - before)
    return torch.sigmoid(between).sqrt(), torch.sigmoid(-between).sqrt()


def annealed(optimizer, step, steps, peak):
    """Linear warm-up, then a cosine down to zero."""
    for group in optimizer.param_groups:
        group["lr"] = peak * min(1, step / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))


def noisy_batch(x0, labels, size, generator):
    """A training batch: noisy samples, their times and labels (a tenth without class), and the true v."""
    chosen = torch.randint(len(x0), (size,), generator=generator)
    x0, labels = x0[chosen].reshape(-1, 1, 8, 8), labels[chosen]
    labels = torch.where(torch.rand(size, generator=generator) < 0.1, NO_CLASS, labels)
    t = (torch.arange(size) + torch.rand(size, generator=generator)) * (999 / size)  # one in each stratum
    alpha_t, sigma_t = (level.reshape(-1, 1, 1, 1) for level in levels(t))
    noise = torch.randn(x0.shape, generator=generator)
    return alpha_t * x0 + sigma_t * noise, t, labels, alpha_t * noise - sigma_t * x0


def train_denoiser(x0, labels, steps, seed, size=256, peak=2e-3, drop=0.1, decay=0.999):
    """Weights averaged over the last thousand or so steps of AdamW on the mean squared error of v."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout has no generator of its own
    weights = {name: x.requires_grad_() for name, x in denoiser_weights(generator).items()}
    average = {name: x.detach().clone() for name, x in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=peak, weight_decay=0.01, betas=(0.9, 0.99))
    frequencies = torch.tensor(FREQUENCIES, dtype=torch.float32)
    for step in progress(steps, "denoiser"):
        annealed(optimizer, step, steps, peak)
        x, t, wanted, v = noisy_batch(x0, labels, size, generator)
        # Weights are dropped instead of activations, so that the shipped forward pass needs no training mode.
        thinned = weights | {name: dropout(weights[name], drop) for name in ("up", "down")}
        loss = mse_loss(network(thinned | {"frequencies": frequencies}, x, t, wanted), v)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        share = 1 - min(decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), [x.detach() for x in weights.values()], share)
    return average | {"frequencies": frequencies}


def train_judge(x0, labels, steps, seed, size=128, peak=3e-3):
    """Weights of the classifier, trained on noisy and thinned digits so that it is not brittle."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    weights = {name: x.requires_grad_() for name, x in judge_weights(generator).items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=peak, weight_decay=0.05)
    for step in progress(steps, "judge"):
        annealed(optimizer, step, steps, peak)
        chosen = torch.randint(len(x0), (size,), generator=generator)
        x = x0[chosen] + 0.2 * torch.randn((size, 64), generator=generator)
        hidden = dropout(torch.relu(x @ weights["in"] + weights["in_bias"]), 0.3)
        hidden = torch.tanh(hidden @ weights["middle"] + weights["middle_bias"])
        logits = dropout(hidden, 0.2) @ weights["out"] + weights["out_bias"]
        loss = cross_entropy(logits, labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: x.detach() for name, x in weights.items()}


def write(path, arrays):
    """All of the file or none of it: a reader never sees half."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


def ddim(model, x, labels, steps, guidance):
    """Deterministic DDIM with x_0 clipped to [-1, 1], from t = 999 down in even steps, in NumPy alone."""
    times = np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1
    signals = np.append(ALPHAS_CUMPROD[times], 1.0)
    for t, cur, nxt in zip(times, signals[:-1], signals[1:], strict=True):
        v = model.guided(x, int(t), labels, guidance)
        x0 = np.clip(np.sqrt(cur) * x - np.sqrt(1 - cur) * v, -1, 1)
        x = np.sqrt(nxt) * x0 + np.sqrt((1 - nxt) / (1 - cur)) * (x - np.sqrt(cur) * x0)
    return x


def euler(model, noise, labels, steps, guidance, rho=7.0):
    """Euler's method in Karras sigma, over the spacing of Karras 2022, equation 5; the times are fractional."""
    table = np.sqrt(1 / ALPHAS_CUMPROD - 1)
    ramp = np.linspace(table[-1] ** (1 / rho), table[0] ** (1 / rho), steps)
    sigmas = np.append(ramp**rho, 0.0)
    x = noise * np.sqrt(sigmas[0] ** 2 + 1)
    for cur, nxt in itertools.pairwise(sigmas):
        t = float(np.interp(np.log(cur), np.log(table), np.arange(1000)))
        scale = 1 / np.sqrt(cur**2 + 1)
        v = model.guided(scale * x, t, labels, guidance)
        x0 = scale**2 * x - cur * scale * v
        x = x + (nxt - cur) / cur * (x - x0)
    return x


def evaluate(model, count, seed, guidances):
    """Print what the judge says of samples by each method."""
    noise, labels = np.random.default_rng(seed).standard_normal((count, 1, 8, 8)), np.arange(count) % 10
    print(
        f"{'method':8}{'steps':>6}{'guidance':>10}{'accuracy':>10}{'distance':>10}   (real: accuracy, distance)"
    )
    for method in (ddim, euler):
        for steps in (5, 10, 25, 50):
            for guidance in guidances:
                quality = digits.judge(method(model, noise, labels, steps, guidance), labels)
                print(
                    f"{method.__name__:8}{steps:6}{guidance:10.2f}{quality.accuracy:10.3f}{quality.distance:10.3f}"
                    f"   ({quality.real_accuracy:.4f}, {quality.real_distance:.3f})",
                    flush=True,
                )


def train(path, steps, judge_steps, seed):
    """Train both networks and write the file."""
    train_pixels, labels, held_out, held_out_labels = split()
    x0, targets = images(train_pixels), torch.tensor(labels)
    parts = {
        "denoiser": train_denoiser(x0, targets, steps, seed),
        "judge": train_judge(x0, targets, judge_steps, seed),
    }
    arrays = {
        "train": train_pixels,
        "held_out": held_out,
        "held_out_labels": held_out_labels.astype(np.uint8),
    }
    for part, weights in parts.items():
        arrays |= {f"{part}.{name}": x.numpy().astype(np.float16) for name, x in weights.items()}
    arrays["denoiser.frequencies"] = parts["denoiser"][
        "frequencies"
    ].numpy()  # half precision would detune them
    write(path, arrays)
    print(f"{path}: {path.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=digits.folder() / "digits.npz", help="file to write")
    parser.add_argument("--steps", type=int, default=10000, help="training steps of the denoiser")
    parser.add_argument("--judge-steps", type=int, default=6000, help="training steps of the judge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for torch")
    parser.add_argument(
        "--samples", type=int, default=1000, help="digits drawn for each line of the evaluation"
    )
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0])
    parser.add_argument("--no-train", action="store_true", help="only evaluate the installed file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.no_train:
        train(args.out, args.steps, args.judge_steps, args.seed)
    if args.out == digits.folder() / "digits.npz":
        evaluate(digits.load(), args.samples, args.seed, args.guidance)


if __name__ == "__main__":
    main()
