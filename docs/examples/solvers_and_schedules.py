"""Which solver, which schedule? Compared on the exact field, without training anything.

All schedules that start as pure noise and end as pure data carry a noise to the same sample; what differs is how well
few steps follow the way. The error of each solver and schedule is its distance from the end of an accurate
integration, over the number of evaluations. From the root of a clone:

    python docs/examples/solvers_and_schedules.py --out solvers_and_schedules.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import fastflow as ff

SOLVERS = {"euler": 1, "heun": 2, "rk4": 4}  # evaluations of a step
SCHEDULES = {"linear": "#d1495b", "cosine": "#2e6f95", "polynomial": "#9aa5b1"}
STYLES = {"euler": "-", "heun": "--", "rk4": ":"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num", type=int, default=64, help="number of samples")
    parser.add_argument("--variance", type=float, default=0.01, help="variance of the data points")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128])
    parser.add_argument("--out", type=Path, default=Path("solvers_and_schedules.png"))
    args = parser.parse_args()

    digits = (load_digits().images / 8.0 - 1.0).astype(np.float32)
    field = ff.VelocityField(digits, variance=args.variance)
    noise = np.random.default_rng(0).normal(size=(args.num, *digits.shape[1:]))
    exact = field.sample(noise, method="dopri5", rtol=1e-7, atol=1e-8)

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    print(f"error per pixel after n evaluations: {'  '.join(f'{n:8d}' for n in args.evaluations)}")
    for schedule, colour in SCHEDULES.items():
        along = field.with_schedule(schedule)  # the same data, not a copy
        for solver, cost in SOLVERS.items():
            counts = [n for n in args.evaluations if n >= cost]
            ends = [along.sample(noise, steps=n // cost, method=solver) for n in counts]
            errors = [float(np.sqrt(np.square(end - exact).mean())) for end in ends]
            print(f"{schedule:>12} {solver:>6}                  {'  '.join(f'{e:8.5f}' for e in errors)}")
            axes.loglog(counts, errors, STYLES[solver], color=colour, label=f"{schedule}, {solver}")
    axes.set(xlabel="evaluations", ylabel="error per pixel", title="Digits, against the exact flow")
    axes.legend(frameon=False, fontsize=7)
    figure.savefig(args.out, dpi=150)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
