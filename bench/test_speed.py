"""Every backend and every rival on every case under pytest-benchmark, grouped by case.

    pytest bench --bench-mode=short

Times of different tests are taken one after the other: to decide which is faster by how much, use `bench.compare`.
Each result is compared with float64, and a wrong one fails the benchmark.

The `numpy` backend is the float64 reference, many times slower than the others by design. It runs once, without a
warm-up call, and is left out where it would take longer than about 20 s.
"""

from __future__ import annotations

import time

import pytest

from fastflow.backends.cores import usable_cores

from . import answers, measure
from .cases import Case, cases
from .contenders import REFERENCE, Contender, backend_contenders, rival_contenders

# Values of residuals (N x d x B) that the reference is asked for: it computes about 4e8 of them per second on one core.
_REFERENCE_LIMIT = 7e9

# Seconds to spend on the rounds of one benchmark, and how many rounds that may make.
_BUDGET = {"short": 0.3, "full": 4.0}
_ROUNDS = {"short": (3, 20), "full": (5, 100)}


def pytest_generate_tests(metafunc):
    mode = metafunc.config.getoption("--bench-mode")
    contenders = [*rival_contenders(usable_cores()), *backend_contenders(usable_cores())]
    metafunc.parametrize("case", cases(mode), ids=lambda case: case.name)
    metafunc.parametrize("contender", contenders, ids=lambda contender: contender.name)


def test_velocity(benchmark, request, case: Case, contender: Contender):
    if contender.missing:
        pytest.skip(f"{contender.name}: {contender.missing}")
    mode = request.config.getoption("--bench-mode")
    reference = contender.backend == REFERENCE
    if contender.compiles and mode == "short":
        pytest.skip(f"{contender.name} compiles for seconds")
    if reference and case.exponentials * case.dim > _REFERENCE_LIMIT:
        pytest.skip(f"{contender.name} is the float64 reference and takes longer than 20 s here")

    x = contender.enter(case.queries())
    call = contender.on(case)
    rounds = 1
    if not reference:
        call(x)
        time.sleep(measure.SETTLE)
        least, most = _ROUNDS[mode]
        rounds = min(most, max(least, int(_BUDGET[mode] / measure.seconds(lambda: call(x)))))

    benchmark.group = f"{case.name}: N={case.num_points:,} d={case.dim:,} B={case.num_queries:,}"
    v = benchmark.pedantic(call, args=(x,), rounds=rounds, iterations=1)
    benchmark.extra_info["relative_error"] = answers.check(case, contender.leave(v), contender.tolerance)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["GFLOP/s"] = case.flop / 1e9 / seconds
        benchmark.extra_info["GB/s"] = case.bytes_read(contender.storage(case)) / 1e9 / seconds
        benchmark.extra_info["Gexp/s"] = case.exponentials / 1e9 / seconds
