"""Instruction sets of other machines, under emulation: NEON on arm64, and the floor of x86-64 on a processor of 2006.

A C program takes one problem and one instruction set; here it meets every kernel and storage type, and is compared with
the reference backend. Without compilers and emulators (Debian's gcc-aarch64-linux-gnu and qemu-user) this is skipped,
but with FASTFLOW_REQUIRE_EMULATORS=1, as the continuous integration has it, it fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

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
# (N, D, B): few dimensions and many of both batch sizes, more than one chunk, nothing a multiple of a vector
SIZES = ((700, 2, 1), (2100, 3, 37), (90, 16, 21), (300, 19, 3), (530, 41, 45))


def program(machine: str, folder: Path) -> list[str]:
    """The command of the program for a machine, compiled once."""
    compiler, emulator, architecture, isa = MACHINES[machine]
    missing = [tool for tool in (compiler, emulator[0]) if shutil.which(tool) is None]
    if missing:
        reason = f"{' and '.join(missing)} not found"
        if os.environ.get("FASTFLOW_REQUIRE_EMULATORS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    binary = folder / architecture
    if not binary.exists():
        objects = []
        run = {target for _, _, other, target in MACHINES.values() if other == architecture}
        for source in sorted([*ROOT.glob("csrc/*.c"), *ROOT.glob("csrc/isa/*.c"), ROOT / "tests/native/variant.c"]):
            flags = re.search(rf"cflags {architecture}: *(.*?)(?:\n|\*/)", source.read_text())
            objects.append(folder / f"{architecture}-{source.stem}.o")
            # What is linked but never run here need not be fast
            level = "-O0" if source.parent.name == "isa" and source.stem not in run else "-O1"
            command = [compiler, "-std=c11", level, "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-D_GNU_SOURCE"]
            command += [f"-I{ROOT}/csrc", "-c", str(source), "-o", str(objects[-1])]
            subprocess.run(command + (flags.group(1).split() if flags else []), check=True)
        subprocess.run([compiler, "-static", "-pthread", *map(str, objects), "-lm", "-o", str(binary)], check=True)
    return [*emulator, str(binary), isa]


@pytest.fixture(scope="module", params=MACHINES)
def command(request, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.getbasetemp() / "emulated"
    folder.mkdir(exist_ok=True)
    return program(request.param, folder)


def stored(rng: np.random.Generator, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    values = rng.normal(size=shape)
    if dtype in ("uint8", "int8"):
        return np.clip(40 * values + 128 * (dtype == "uint8"), 0 if dtype == "uint8" else -128, 127).astype(dtype)
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("differ", [False, True], ids=["shared", "per-point"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_moments(command, precision, differ, order):
    """Every storage type and kernel; one time for all queries, and one for each."""
    rng = np.random.default_rng(7)
    for number, (count, size, queries) in enumerate(SIZES):
        dtype = list(STORED)[(number + 2 * differ + (order == "second")) % len(STORED)]
        for times in (1, queries):
            data = stored(rng, dtype, (count, size))
            scale, offset = (0.02, -1.0) if dtype in ("uint8", "int8") else (1.0, 0.0)
            points = data.astype(np.float64) * scale + offset
            t = rng.uniform(0.05, 0.9, times)
            chosen = points[rng.integers(count, size=queries)]
            x = (t[:, None] * chosen + (1 - t[:, None]) * rng.normal(size=(queries, size))).astype(precision)
            variance = rng.uniform(0.01, 0.02, count) if differ else None
            coefficients = [1 - t, t, (1 - t) ** 2] + ([t**2, np.ones(times), np.zeros(times)] if differ else [])
            coefficients = np.array(coefficients)
            tangent = None
            if order == "second":
                tangent = Tangent(rng.normal(size=x.shape).astype(precision), rng.normal(size=(3, queries)))
            head = [DTYPES[dtype], DTYPES[precision], count, size, queries, times, differ, tangent is not None]
            parts = [np.array(head, np.int64), np.array([scale, offset]), data]
            parts += ([variance] if differ else []) + [coefficients, x]
            parts += list(tangent) if tangent else []
            done = subprocess.run(command, input=b"".join(p.tobytes() for p in parts), capture_output=True)
            assert done.returncode == 0, (done.returncode, done.stderr.decode())
            got = np.frombuffer(done.stdout)

            reference = Reference(Points(points, None, None, variance=variance))
            want = Want(mean=True, spread=True, trace=tangent is not None)
            if tangent:
                want = want._replace(tangent=Tangent(tangent.direction.astype(np.float64), tangent.factors))
            exact = reference.moments(x.astype(np.float64), coefficients, want)
            names = ["log_total", "entropy", "collision", *(["trace"] if tangent else []), "mean", "residual"]
            names += (["gain", "gained"] if differ else []) + (["tilt", "mean_product"] if tangent else [])
            tolerance = {"float32": 1e-5, "float64": 1e-10}[precision]
            at = 0
            for name in names:
                value = getattr(exact, name)
                result = got[at : at + value.size].reshape(value.shape)
                at += value.size
                error = np.abs(result - value).max() / max(np.abs(value).max(), 1e-3)
                assert error <= tolerance, (name, dtype, count, size, queries, times, error / tolerance)
            assert at == got.size
