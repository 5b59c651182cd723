"""Benchmarks of fastflow: what decides whether it is fast, and by how much.

    cases ─┬─ contenders (backends of fastflow, rivals) ─ measure ─┬─ compare      ratios, interleaved in one run
           └─ answers (float64, for every timed result)            ├─ test_speed   the same under pytest-benchmark
                                                                   ├─ models       what a variance of each point costs
                                                                   ├─ overhead     microseconds per small call
                                                                   ├─ profile      where the time of our kernels goes
                                                                   └─ memory       peak above inputs and outputs
    compare, ceilings, accuracy, profile, scaling, overhead ─ targets ─ report     docs/performance.md

Run from the root of the source tree; README.md has the commands. That folder comes first on the path then and would
hide an installed fastflow behind a source tree that may have no compiled extension. Importing this package moves it
to the end: an installed fastflow goes first, and an editable installation, which lives in the source tree, is found
as before.

It also clears two variables that choose the kernels of OpenBLAS. Some systems set them for the sake of old versions,
and they make a current NumPy slower than it is. OpenBLAS reads them when NumPy is first imported, which is later. Then
it sets what holds everyone to an instruction set, if that is wanted (held.py).
"""

import os
import sys
from pathlib import Path

from .held import hold

ROOT = Path(__file__).resolve().parent.parent


def _installed_first() -> None:
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    sys.path[:] = [*elsewhere, str(ROOT)]


def _kernels_of_openblas_by_processor() -> None:
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)


_installed_first()
_kernels_of_openblas_by_processor()
hold()
