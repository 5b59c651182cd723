"""Instruction sets of other machines, under emulation: NEON on arm64, the floor of x86-64 on a processor of 2006, and
the matrices of AMX, whose instructions are written down in C (tests/native/intrinsics.h, on top of SIMDe).

A C program takes one problem and one instruction set; here it meets every kernel and storage type, and is compared with
the reference backend. Without compilers and emulators (Debian's gcc-aarch64-linux-gnu, qemu-user and libsimde-dev) this
is skipped, but with FASTFLOW_REQUIRE_EMULATORS=1, as the continuous integration has it, it fails.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

from fastflow._arrays import STORED
from fastflow.backends import Points, Tangent, Want
from fastflow.backends.numpy import Reference

ROOT = Path(__file__).parent.parent
MACHINES = {
    "arm64-neon": ("aarch64-linux-gnu-gcc", ["qemu-aarch64"], "aarch64", "neon"),
    "arm64-plain": ("aarch64-linux-gnu-gcc", ["qemu-aarch64"], "aarch64", "plain"),
    "x86_64-plain": ("x86_64-linux-gnu-gcc", ["qemu-x86_64", "-cpu", "core2duo"], "x86_64", "plain"),
}
DTYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3, "uint8": 4, "int8": 5}
# The matrices run natively, beside the floor of x86-64, from two files that are compiled in another way.
MATRICES = ("x86_64-linux-gnu-gcc", ["env"], "x86_64", "amx")
INTRINSICS = ROOT / "tests/native/intrinsics.h"
IN_C = {"amx": ["-DFF_BASE=plain"], "ff_cpu": []}
# (N, D, B): few dimensions and many of both batch sizes, more than one chunk, nothing a multiple of a vector
SIZES = (
    *((700, 2, 1), (2100, 3, 37), (90, 16, 21), (300, 131, 3), (530, 41, 45), (280, 35, 133)),
    *((300, 19, 1), (210, 12, 35), (270, 520, 6)),
)


def program(machine: tuple[str, list[str], str, str], folder: Path) -> list[str]:
    """The command of the program for a machine, compiled once."""
    compiler, emulator, architecture, isa = machine
    in_c = IN_C if machine is MATRICES else {}
    missing = [tool for tool in (compiler, emulator[0]) if shutil.which(tool) is None]
    if in_c and not Path("/usr/include/simde").exists():
        missing.append("simde")
    if missing:
        reason = f"{' and '.join(missing)} not found"
        if os.environ.get("FASTFLOW_REQUIRE_EMULATORS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    binary = folder / (isa if in_c else architecture)
    if not binary.exists():
        objects = []
        targets = [target for _, _, other, target in MACHINES.values() if other == architecture] + [isa] * bool(in_c)
        table = folder / f"{binary.name}.def"
        table.write_text("".join(f"FF_TARGET({target})\n" for target in sorted(set(targets), key=targets.index)))
        sets = [ROOT / f"csrc/isa/{target}.c" for target in set(targets)]
        for source in sorted([*ROOT.glob("csrc/*.c"), *sets, ROOT / "tests/native/variant.c"]):
            # What does not depend on the table is compiled once for an architecture
            alone = source.parent.name == "isa" and source.stem not in in_c
            objects.append(folder / f"{architecture if alone else binary.name}-{source.stem}.o")
            if objects[-1].exists():
                continue
            flags = re.search(rf"cflags {architecture}: *(.*?)(?:\n|\*/)", source.read_text())
            flags = flags.group(1).split() if flags else []
            if source.stem in in_c:
                flags = [f'-DFF_INTRINSICS="{INTRINSICS}"', *in_c[source.stem]]
            command = [compiler, "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-ffp-contract=off"]
            command += ["-D_GNU_SOURCE", f'-DFF_TARGETS="{table}"', f"-I{ROOT}/csrc"]
            subprocess.run([*command, *flags, "-c", str(source), "-o", str(objects[-1])], check=True)
        subprocess.run([compiler, "-static", "-pthread", *map(str, objects), "-lm", "-o", str(binary)], check=True)
    return [*emulator, str(binary), isa]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.getbasetemp() / "emulated"
    made.mkdir(exist_ok=True)
    return made


@pytest.fixture(scope="module", params=MACHINES)
def command(request, folder) -> list[str]:
    return program(MACHINES[request.param], folder)


def stored(rng: np.random.Generator, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    values = rng.normal(size=shape)
    if dtype in ("uint8", "int8"):
        limits = np.iinfo(dtype)
        return np.clip(40 * values + 128 * (dtype == "uint8"), limits.min, limits.max).astype(dtype)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


class Problem(NamedTuple):
    """Points as they are stored, what they stand for, queries, and coefficients as backends take them."""

    stored: np.ndarray
    affine: tuple[float, float]
    points: np.ndarray
    x: np.ndarray
    coefficients: np.ndarray
    variance: np.ndarray | None
    tangent: Tangent | None = None


def problem(rng, dtype, shape, queries, times, between, precision, differ, second=False) -> Problem:
    count, size = shape
    data = stored(rng, dtype, shape)
    t = rng.uniform(*between, times)
    affine = (0.02, -1.0) if dtype in ("uint8", "int8") else (1.0, 0.0)
    points = data.astype(np.float64) * affine[0] + affine[1]
    chosen = points[rng.integers(count, size=queries)]
    x = (t[:, None] * chosen + (1 - t[:, None]) * rng.normal(size=(queries, size))).astype(precision)
    variance = rng.uniform(0.01, 0.02, count) if differ else None
    coefficients = [1 - t, t, (1 - t) ** 2] + ([t**2, np.ones(len(t)), np.zeros(len(t))] if differ else [])
    tangent = None
    if second:
        tangent = Tangent(rng.normal(size=x.shape).astype(precision), rng.normal(size=(3, queries)))
    return Problem(data, affine, points, x, np.array(coefficients), variance, tangent)


def exact_moments(given: Problem):
    tangent = given.tangent
    want = Want(mean=True, spread=True, trace=tangent is not None)
    if tangent:
        want = want._replace(tangent=Tangent(tangent.direction.astype(np.float64), tangent.factors))
    reference = Reference(Points(given.points, None, None, variance=given.variance))
    return reference.moments(given.x.astype(np.float64), given.coefficients, want)


def names(given: Problem) -> list[str]:
    tangent, differ = given.tangent is not None, given.variance is not None
    made = ["log_total", "entropy", "collision", *(["trace"] if tangent else []), "mean", "residual"]
    return made + (["gain", "gained"] if differ else []) + (["tilt", "mean_product"] if tangent else [])


def run(command: list[str], given: Problem, exact) -> dict[str, np.ndarray]:
    """What the program finds, by name, in the shapes of the exact results."""
    dtype, precision = str(given.stored.dtype), str(given.x.dtype)
    times = given.coefficients.shape[1]
    differ, tangent = given.variance is not None, given.tangent is not None
    head = [DTYPES[dtype], DTYPES[precision], *given.stored.shape, len(given.x), times, differ, tangent]
    parts = [np.array(head, np.int64), np.array(given.affine), given.stored]
    parts += ([given.variance] if differ else []) + [given.coefficients, given.x]
    parts += list(given.tangent) if tangent else []
    done = subprocess.run(command, input=b"".join(p.tobytes() for p in parts), capture_output=True)
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    if command[-1] == MATRICES[-1]:  # not those of the set beneath
        assert int(re.search(rb"products of matrices: (\d+)", done.stderr).group(1)) > 0
    flat, found = np.frombuffer(done.stdout), {}
    for name in names(given):
        shape = getattr(exact, name).shape
        found[name], flat = np.split(flat, [math.prod(shape)])
        found[name] = found[name].reshape(shape)
    assert flat.size == 0
    return found


def check(command: list[str], given: Problem, entropy: float = 1e-3) -> None:
    """Every moment, relative to the largest of its kind; where all entropies are below `entropy`, relative to that."""
    exact = exact_moments(given)
    tolerance = {"float32": 1e-5, "float64": 1e-10}[str(given.x.dtype)]
    for name, result in run(command, given, exact).items():
        value = getattr(exact, name)
        error = np.abs(result - value).max() / max(np.abs(value).max(), entropy if name == "entropy" else 1e-3)
        assert error <= tolerance, (name, given.stored.dtype, given.stored.shape, given.x.shape, error / tolerance)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("differ", [False, True], ids=["shared", "per-point"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_moments(command, precision, differ, order):
    """Every storage type and kernel; one time for all queries, and one for each."""
    rng = np.random.default_rng(7)
    for number, (count, size, queries) in enumerate(SIZES):
        dtype = list(STORED)[(number + 2 * differ + (order == "second")) % len(STORED)]
        for times in (1, queries):
            shape, second = (count, size), order == "second"
            check(command, problem(rng, dtype, shape, queries, times, (0.05, 0.9), precision, differ, second))


MATRIX_STORED = ("uint8", "int8", "bfloat16")


@pytest.mark.parametrize("differ", [False, True], ids=["shared", "per-point"])
@pytest.mark.parametrize("dtype", MATRIX_STORED)
def test_matrices(folder, dtype, differ):
    """More points than one chunk; panels and rows that are not full; more dimensions than are converted at a time;
    early and late times."""
    command, rng = program(MATRICES, folder), np.random.default_rng(11)
    for count, size, queries in ((1300, 70, 40), (90, 1100, 33), (200, 19, 5)):
        for times, latest in ((1, 0.5), (queries, 0.5), (queries, 0.999)):
            between = (latest - 0.4, latest)
            given = problem(rng, dtype, (count, size), queries, times, between, "float32", differ)
            check(command, given, entropy=1.0)  # as in test_accuracy.py: late, one point has all the weight


@pytest.mark.parametrize("dtype", MATRIX_STORED)
@pytest.mark.parametrize("spike", [0.0, 100.0], ids=["even", "one large"])
def test_dot_products_of_matrices_keep_their_bound(folder, dtype, spike):
    """The bound that the files of the products state, and the roundings of a float32 logit, seen in the log of the
    total: no weight is so large that it would be computed again."""
    rng, u = np.random.default_rng(13), 2.0**-24
    given = problem(rng, dtype, (1100, 300), 64, 1, (0.02, 0.03), "float32", False)
    given.x[:, 7] += spike
    exact = exact_moments(given)
    found = run(program(MATRICES, folder), given, exact)

    _, beta, variance = given.coefficients[:, 0]
    scale, offset = given.affine
    centre = np.sort(given.stored, axis=0)[len(given.stored) // 2].astype(float) if dtype != "bfloat16" else 0.0
    e = given.x - beta * (scale * centre + offset)
    points, q = given.stored.astype(float) - centre, beta * scale / variance * e
    products, squares = q @ points.T, 0.5 * (beta * scale) ** 2 / variance * (points**2).sum(axis=1)
    largest = np.abs(q).max(axis=1, keepdims=True) * np.abs(points).sum(axis=1)
    if dtype == "bfloat16":  # (size / 32 PIECES + 18) u sum |q_k mu'_k|
        dots = (300 / 32 * 3 + 18) * (np.abs(q) @ np.abs(points).T)
    else:
        dots = largest + 4 * np.abs(products)
    # The centre of the kernel is the median of a sample: twice the bound about that of all. Five operations make a
    # logit.
    bound = u * (2 * dots + 5 * (np.abs(products) + squares + np.log(1100) + 1)).max(axis=1)
    error = np.abs(found["log_total"] - exact.log_total)
    assert np.all(error <= bound + u)
