"""Guidance by differentiating through the field: digits whose upper half is given.

Observed is `y = A x_f`, the upper half of a digit. Along the flow the posterior mean of the data is
`m(x, t) = x + (1 - t) v(x, t)`, and the score of the observation is approximated by Gaussian noise of variance r^2
about it (reconstruction guidance; Song et al. 2023, "Pseudoinverse-guided diffusion models"),

    grad_x log p(y | x) ~ -grad_x |y - A m(x, t)|^2 / (2 r^2),    r^2 = (1 - t)^2 / (t^2 + (1 - t)^2),

times a factor (`--strength`) that makes up for the approximation. A score g changes the velocity of the linear schedule
by (1 - t) / t g. As the data are finite, the best that can be had is known: the digit whose upper half is closest to y.
From the root of a clone:

    python docs/examples/gradient_guidance.py --out gradient_guidance.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import fastflow as ff
from fastflow.adapters.torch import VelocityModule

START = 0.05  # below, x says nothing about the data, and (1 - t) / t is large


def sample(model: VelocityModule, noise: torch.Tensor, given: torch.Tensor, steps: int, strength: float):
    """Euler steps of the guided velocity."""
    x = noise
    times = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    for t, stop in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        x = x.detach().requires_grad_()
        v = model(x, t)
        if strength and t >= START:
            mean = x + (1.0 - t) * v
            misfit = (given - mean[:, :4]).square().sum() / (2.0 * (1.0 - t) ** 2 / (t**2 + (1.0 - t) ** 2))
            v = v - strength * (1.0 - t) / t * torch.autograd.grad(misfit, x)[0]
        x = x + (stop - t) * v
    return x.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num", type=int, default=12, help="number of digits to complete")
    parser.add_argument("--steps", type=int, default=100, help="steps of the flow")
    parser.add_argument("--strength", type=float, default=3.0, help="factor of the guidance")
    parser.add_argument("--out", type=Path, default=Path("gradient_guidance.png"))
    args = parser.parse_args()

    digits = (load_digits().images / 8.0 - 1.0).astype(np.float32)
    wanted, rest = digits[: args.num], digits[args.num :]  # what is to be completed is not among the data
    field = ff.VelocityField(rest)
    given = torch.from_numpy(wanted[:, :4])
    noise = torch.randn(args.num, 8, 8, generator=torch.Generator().manual_seed(0))
    model = VelocityModule(field)
    found = {
        name: sample(model, noise, given, args.steps, strength).numpy()
        for name, strength in (("without guidance", 0.0), ("with guidance", args.strength))
    }
    misfits = np.square(rest[None, :, :4] - wanted[:, None, :4]).sum(axis=(2, 3))
    found["closest in the data"] = rest[misfits.argmin(axis=1)]
    for name, images in found.items():
        misfit = np.square(images[:, :4] - wanted[:, :4]).mean()
        print(f"{name:>20}: misfit of the upper half {misfit:.3f} per pixel")

    figure = Figure(figsize=(0.6 * args.num + 1.6, 2.8), layout="constrained")
    rows = {"given": np.where(np.arange(8)[:, None] < 4, wanted, np.nan), **found}
    grid = figure.subplots(len(rows), args.num, squeeze=False)
    for axes, (name, images) in zip(grid, rows.items(), strict=True):
        for panel, image in zip(axes, images, strict=True):
            panel.imshow(image, cmap="gray_r", vmin=-1, vmax=1)
            panel.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(args.out, dpi=150)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
