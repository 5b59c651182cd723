"""How far is a trained network from the optimum, and when? Its distance from the exact field over t.

A small network learns two moons by conditional flow matching as usual. Its loss never falls to zero, because the target
is random given x and t; the field says what remains at the optimum (`cfm_loss_floor`) and what the network should have
returned, so the excess `E |v_net - v|^2` can be seen at each t. From the root of a clone:

    python docs/examples/network_distance.py --out network_distance.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import make_moons

import fastflow as ff

TIMES = np.linspace(0.02, 0.98, 25)


class Network(torch.nn.Module):
    """A velocity network of x and t, with t as three features."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(5, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, 2),
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        features = torch.stack([t, torch.sin(torch.pi * t), torch.cos(torch.pi * t)], dim=1)
        return self.layers(torch.cat([x, features], dim=1))


def train(field: ff.VelocityField, width: int, steps: int, batch: int) -> Network:
    """Regression on the velocity of single paths, `num_subset=1`: conditional flow matching."""
    torch.set_num_threads(1)  # more cost time with a network this small
    torch.manual_seed(0)
    network, rng = Network(width), np.random.default_rng(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        drawn = field.training_batch(batch, num_subset=1, rng=rng)
        x, t, target = (torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in (drawn.x, drawn.t, drawn.target))
        loss = (network(x, t) - target).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return network


def distance(field: ff.VelocityField, network: Network, t: float, num: int) -> tuple[float, float]:
    """`E |v_net - v|^2` and `E |v|^2` over the states of time t."""
    drawn = field.training_batch(num, t=t, rng=1)  # all data by default: the target is the exact velocity
    with torch.no_grad():
        found = network(torch.from_numpy(drawn.x).float(), torch.full((num,), t)).numpy()
    return np.square(found - drawn.target).sum(1).mean(), np.square(drawn.target).sum(1).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=int, default=1000, help="number of data points")
    parser.add_argument("--steps", type=int, default=3000, help="steps of training")
    parser.add_argument("--batch", type=int, default=512, help="batch size of training")
    parser.add_argument("--num", type=int, default=4096, help="states at each time for the measurement")
    parser.add_argument("--out", type=Path, default=Path("network_distance.png"))
    args = parser.parse_args()

    field = ff.VelocityField(make_moons(args.data, noise=0.05, random_state=0)[0].astype(np.float32))
    network = train(field, 128, args.steps, args.batch)
    excess, size = np.array([distance(field, network, t, args.num) for t in TIMES.tolist()]).T
    floor = np.array([field.cfm_loss_floor(t, num_samples=args.num, seed=2).value for t in TIMES.tolist()])

    worst = TIMES[np.argmax(excess)]
    print(f"mean over t: excess {excess.mean():.3f}, loss at the optimum {floor.mean():.3f}, |v|^2 {size.mean():.3f}")
    print(
        f"relative error of the network: {np.sqrt(excess.mean() / size.mean()):.1%}; largest excess at t = {worst:.2f}"
    )

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(TIMES, floor, color="#9aa5b1", label="loss that remains at the optimum")
    axes.plot(TIMES, excess, color="#d1495b", label="excess of the network, $E\\,|v_{net} - v|^2$")
    axes.set(xlabel="t (0 noise, 1 data)", yscale="log", title=f"Two moons, {args.steps} steps of training")
    axes.legend(frameon=False)
    figure.savefig(args.out, dpi=150)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
