"""Paint the missing half of handwritten digits with RePaint, and draw input, mask and result into docs/inpaint.png.

    python examples/inpaint_digits.py [--out FILE] [--steps N] [--jump-length J] [--jump-n-sample R] [--seed S]

The digits are held out: no training has seen them. The demo model is told the class, and knows nothing of masks.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from anystep import DDPM, BetaSchedule, Clip, Trailing, inpaint
from anystep.demo import digits
from anystep.demo.drawing import grid


def paint(pictures, labels, mask, *, steps=50, jump_length=10, jump_n_sample=10, seed=0):
    """The pictures, made up where the mask is 0."""
    model, config = digits.load(), digits.scheduler_config()
    schedule = BetaSchedule.named(config["beta_schedule"], config["num_train_timesteps"])
    plan = DDPM().plan(Trailing().levels(schedule, steps), config["prediction_type"], Clip(1.0))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(pictures.shape, dtype=np.float32)
    return inpaint(
        lambda x, t: model.guided(x, t, labels),
        plan,
        x,
        pictures,
        mask,
        generator=rng,
        jump_length=jump_length,
        jump_n_sample=jump_n_sample,
    )


def halves(count):
    """Masks that keep the left, the right, the upper and the lower half in turn, 1 where the picture is kept."""
    left = np.repeat(np.arange(8) < 4, 8).reshape(8, 8).T
    kinds = np.stack([left, ~left, left.T, ~left.T])[:, None].astype(np.float32)
    return kinds[np.arange(count) % 4]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "inpaint.png")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--jump-length", type=int, default=10, help="levels of a jump back up")
    parser.add_argument(
        "--jump-n-sample", type=int, default=10, help="times each stretch is sampled; 1 is no resampling"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images, truth = digits.held_out()
    options = {key: value for key, value in vars(args).items() if key != "out"}
    first = [int(np.flatnonzero(truth == digit)[0]) for digit in range(10)]
    pictures, labels, mask = images[first], truth[first], halves(10)
    painted = paint(pictures, labels, mask, **options)
    rows = np.concatenate([pictures, np.where(mask > 0, pictures, 0.0), painted])
    Image.fromarray(grid(rows.astype(np.float32), columns=10, zoom=6)).save(args.out)
    kept = np.abs(np.where(mask > 0, painted - pictures, 0.0)).max()
    print(
        f"{args.out}: rows input, mask applied (grey: unknown), result; kept pixels differ by at most {kept:g}"
    )
    print(f"read as the class of the input: {round(10 * digits.judge(painted, labels).accuracy)} of 10")
    masks = halves(len(images))
    empty = digits.judge(np.where(masks > 0, images, -1.0), truth).accuracy
    told = digits.judge(paint(images, truth, masks, **options), truth)
    free = digits.judge(paint(images, np.full_like(truth, digits.NO_CLASS), masks, **options), truth).accuracy
    print(f"all {len(images)} held-out digits: {told.accuracy:.3f}, the real ones {told.real_accuracy:.3f}")
    print(f"the unknown half left empty: {empty:.3f}; the model not told the class: {free:.3f}")


if __name__ == "__main__":
    main()
