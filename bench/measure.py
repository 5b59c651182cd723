"""How a time is taken: contenders in turns, each alone on the machine, the order reversed from round to round.

The speed of a machine drifts, and its caches and threads remember who ran last. So contenders are timed in rounds,
every contender once per round, every second round in reverse order; and what is reported is the ratio within a round,
as the median over the rounds with a band.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Seconds of silence before a turn. The threads of OpenBLAS spin for 2^28 ticks of the processor's clock after a
# product before they sleep, and would take a core from whoever runs next. Measured as processor time used during a
# sleep that follows a product: it grows with the sleep up to 0.104 s at 2.6 GHz and no further.
SETTLE = 0.2

# Seconds that a turn lasts at least: calls shorter than this are repeated, and the turn is their median.
TURN = 0.3


class Pace(NamedTuple):
    """Seconds of silence before a turn, and seconds that it lasts at least."""

    settle: float
    turn: float


# The one for figures, and one for runs that look at how things work, not at how fast.
CAREFUL, QUICK = Pace(SETTLE, TURN), Pace(0.01, 0.01)

# Seconds that the rounds of one contender may take; then it leaves, after one round at least.
PATIENCE = 30.0


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def turn(call: Callable[[], object], expected: float, pace: Pace = CAREFUL) -> float:
    """Seconds per call in one turn, where a call takes about `expected` seconds."""
    time.sleep(pace.settle)
    if expected < pace.turn:
        call()  # brings its threads and caches back
    repeats = max(1, int(pace.turn / max(expected, 1e-6)))
    return statistics.median(seconds(call) for _ in range(repeats))


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, pace: Pace = CAREFUL) -> dict[str, list[float]]:
    """Seconds per call of each contender, one for every round. Calls must be warm.

    A contender so slow that all rounds would take it longer than `PATIENCE` takes part in the first rounds only.
    """
    expected, own_rounds = {}, {}
    for name, call in calls.items():
        time.sleep(pace.settle)
        expected[name] = seconds(call)
        own_rounds[name] = max(1, int(PATIENCE / expected[name]))
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for done in range(rounds):
        for name in order:
            if done < own_rounds[name]:
                times[name].append(turn(calls[name], expected[name], pace))
        order.reverse()
    return times


def ratio(of: Sequence[float], to: Sequence[float]) -> tuple[float, float, float]:
    """Times `of` over times `to` in the rounds that both took part in: median, 10 % and 90 % quantile."""
    return band([a / b for a, b in zip(of, to, strict=False)])


def band(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 10 % and 90 % quantile."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return float(middle), float(low), float(high)
