"""The benchmarks run, give right answers and measure the package that is installed. No times are asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastflow as ff

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "bench").is_dir(), reason="the benchmarks are not part of this copy")


def run(*arguments, **environment) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compare_covers_every_fast_backend_and_instruction_set(tmp_path):
    file = tmp_path / "report.json"
    run("-m", "bench.compare", "--mode", "short", "--cases", "digits", "--rounds", "1", "--json", str(file))
    report = json.loads(file.read_text())
    expected = {"numpy-blas"}
    for name, info in ff.backends().items():
        if info.available and name != "numpy":
            expected |= {name, *(f"{name}-{isa}" for isa in info.isas[:-1])}
    assert {result["contender"] for result in report["results"]} == expected
    assert all(result["error"] < 1e-5 for result in report["results"])


def test_overhead_and_memory_run():
    assert "float32" in run("-m", "bench.overhead", "--calls", "10")
    assert "numpy-blas" in run("-m", "bench.memory", "--size", "500", "8", "4")


def test_an_installed_package_goes_before_the_source_tree(tmp_path):
    (tmp_path / "fastflow").mkdir()
    (tmp_path / "fastflow" / "__init__.py").write_text("")
    path = run("-c", "import bench, fastflow; print(fastflow.__file__)", PYTHONPATH=str(tmp_path)).strip()
    assert Path(path).is_relative_to(tmp_path)
