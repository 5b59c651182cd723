"""Exact sampling with torchdiffeq: the adaptive solver of another library on the exact field.

Two moons without variance: the flow ends on data points. The solver looks past t = 1, which `TimeFirst` allows. It ends
where the field's own integrator does, and counts how often it asked for the velocity. From the root of a clone:

    python docs/examples/torchdiffeq_sampling.py --out torchdiffeq_sampling.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons
from torchdiffeq import odeint

import fastflow as ff
from fastflow.adapters.ode import TimeFirst


class Counted(TimeFirst):
    """The field, counting its evaluations."""

    calls = 0

    def forward(self, t, x, args=None):
        self.calls += 1
        return super().forward(t, x, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=int, default=1000, help="number of data points")
    parser.add_argument("--num", type=int, default=200, help="number of samples")
    parser.add_argument("--rtol", type=float, default=1e-5, help="tolerance of the solver")
    parser.add_argument("--out", type=Path, default=Path("torchdiffeq_sampling.png"))
    args = parser.parse_args()

    points = make_moons(args.data, noise=0.05, random_state=0)[0]
    field = ff.VelocityField(points)
    noise = torch.randn(args.num, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    model = Counted(field)
    path = odeint(model, noise, torch.linspace(0.0, 1.0, 31, dtype=torch.float64), rtol=args.rtol, atol=args.rtol)
    own = field.sample(noise.numpy(), method="dopri5", rtol=args.rtol, atol=args.rtol)

    end = path[-1].numpy()
    to_data = np.linalg.norm(end[:, None] - points[None], axis=-1).min(axis=1)
    print(f"torchdiffeq dopri5: {model.calls} evaluations for {args.num} samples")
    print(f"on a data point, within 0.01: {(to_data < 0.01).mean():.1%}")
    print(f"same end as field.sample, within 0.01: {(np.linalg.norm(end - own, axis=1) < 0.01).mean():.1%}")

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*path[:, :60].numpy().transpose(2, 0, 1), color="#9aa5b1", linewidth=0.5)
    axes.scatter(*noise.numpy().T, s=4, color="#6b7280", label="noise, t = 0")
    axes.scatter(*end.T, s=4, color="#d1495b", label="samples, t = 1")
    axes.set_title("The exact flow to two moons by torchdiffeq")
    axes.legend(frameon=False)
    figure.savefig(args.out, dpi=150)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
