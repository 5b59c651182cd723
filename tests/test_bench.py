"""The benchmarks run, give right answers and measure the package that is installed. No times are asserted."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
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


def fast_backends() -> list[str]:
    return [name for name, info in ff.backends().items() if info.available and name != "numpy"]


def test_compare_covers_every_fast_backend_instruction_set_and_installed_rival(tmp_path):
    file = tmp_path / "report.json"
    run("-m", "bench.compare", "--mode", "short", "--cases", "digits", "--rounds", "1", "--json", str(file))
    report = json.loads(file.read_text())
    expected = {"numpy-blas"}
    for name, info in ff.backends().items():
        if info.available and name != "numpy":
            expected |= {name, *(f"{name}-{isa}" for isa in info.isas[:-1])}
    for library, names in {"torch": {"torch-eager", "torch-sdpa"}, "jax": {"jax-jit"}}.items():
        if importlib.util.find_spec(library):
            expected |= names
    # Beside these there may be KeOps and a GPU.
    assert {result["contender"] for result in report["results"]} >= expected
    assert all(result["error"] < 1e-5 for result in report["results"] if result["contender"] in expected)


def test_only_fastflow_stores_what_is_not_float32(tmp_path):
    file, (ours, *_) = tmp_path / "report.json", fast_backends()
    short = ("--mode", "short", "--rounds", "1", "--cases", "mnist-single-uint8")
    run("-m", "bench.compare", *short, "--contenders", ours, "--json", str(file))
    results = json.loads(file.read_text())["results"]
    assert {result["contender"]: result["storage"] for result in results} == {"numpy-blas": "float32", ours: "uint8"}
    assert all(result["error"] < 1e-5 for result in results)


@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="the ceilings need a C compiler")
def test_report_writes_its_page_and_pictures(tmp_path):
    short = ("--mode", "short", "--rounds", "1", "--cases", "digits", "mnist-single")
    printed = run("-m", "bench.report", *short, "--contenders", *fast_backends()[:1], "--out", str(tmp_path))
    page = (tmp_path / "performance.md").read_text()
    for title in ("All cases, all contenders", "Targets", "Speed", "Ceilings", "Accuracy"):
        assert f"## {title}\n" in page
        assert f"\n{title}. " in printed
    assert "two cores with AVX2: digits: speed over the best processor rival" in page
    assert "met" not in {cell.strip() for line in page.splitlines() if "reduced" in line for cell in line.split("|")}
    pictures = [line.split("](")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert "images/roofline.png" in pictures
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_models_run():
    (backend, *_) = fast_backends()
    printed = run("-m", "bench.models", "--mode", "short", "--rounds", "1", "--sizes", "digits", "--backends", backend)
    assert "of each query" in printed


def test_the_processor_chooses_the_kernels_of_blas():
    code = "import bench, os; print('OPENBLAS_CORETYPE' in os.environ)"
    assert run("-c", code, OPENBLAS_CORETYPE="Prescott").strip() == "False"


@pytest.mark.skipif("avx2" not in ff.backends()["native"].isas, reason="AVX2 is not here to be held to")
def test_everyone_is_held_to_an_instruction_set(tmp_path):
    file = tmp_path / "report.json"
    chosen = ("--contenders", "native", "jax-jit", "--json", str(file))
    printed = run(
        *("-m", "bench.compare", "--mode", "short", "--cases", "digits", "--rounds", "1", *chosen),
        FASTFLOW_BENCH_ISA="avx2",
        OPENBLAS_CORETYPE="Prescott",
    )
    report = json.loads(file.read_text())
    assert report["machine"]["all held to"] == "avx2"
    assert report["machine"].get("blas", "(Haswell)").endswith("(Haswell)")
    assert {result["contender"] for result in report["results"]} == {"numpy-blas", "native"}
    assert "missing: jax-jit: cannot be held to avx2" in printed
    code = "from bench import contenders; from fastflow.backends.numba import vector"
    code += "; print(contenders.isas('native')[0], vector.VECTOR_BYTES)"
    assert run("-c", code, FASTFLOW_BENCH_ISA="avx2").split() == ["avx2", "32"]


@pytest.mark.parametrize(
    ("arguments", "isa", "words"),
    [
        (("-m", "bench.overhead"), "mmx", "FASTFLOW_BENCH_ISA is 'mmx'; accepted are 'avx2'"),
        (("-c", "import numpy, bench"), "avx2", "FASTFLOW_BENCH_ISA comes too late: numpy is loaded"),
        (("-m", "bench.report", "--mode", "short"), "avx2", "--out is needed where all are held to avx2"),
    ],
)
def test_what_cannot_be_held_is_refused(arguments, isa, words):
    environment = {**os.environ, "FASTFLOW_BENCH_ISA": isa}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert words in done.stderr


def test_a_profile_tells_the_parts_of_the_kernel_apart():
    report = """# Overhead  Shared Object      Symbol
    60.00%  libfastflow.so  [.] batch_dots_f32_f32_avx2.constprop.0
    20.00%  libfastflow.so  [.] batch_weigh_f32_f32_avx2
    10.00%  libfastflow.so  [.] ff_something_new
    10.00%  [unknown]       [k] schedule
"""
    code = "import sys; from bench.profile import PARTS, shares; print(dict(zip(PARTS, shares(sys.argv[1]))))"
    found = {part: share for part, share in ast.literal_eval(run("-c", code, report)).items() if share}
    assert found == {"products": 0.6, "weights": 0.2, "the rest": 0.1, "outside the library": 0.1}


def test_no_thread_is_left_without_queries():
    code = "from bench.rivals.torch_sdpa import heads, slices; print(heads(64, 2), heads(64, 16), heads(1, 16))"
    assert run("-c", code).split() == ["1", "16", "1"]


def test_overhead_and_memory_run():
    assert "float32" in run("-m", "bench.overhead", "--calls", "10")
    chosen = ("numpy-blas", *fast_backends()[:1])
    printed = run("-m", "bench.memory", "--size", "500", "8", "4", "--contenders", *chosen)
    assert all(name in printed for name in chosen)


def test_an_installed_package_goes_before_the_source_tree(tmp_path):
    (tmp_path / "fastflow").mkdir()
    (tmp_path / "fastflow" / "__init__.py").write_text("")
    path = run("-c", "import bench, fastflow; print(fastflow.__file__)", PYTHONPATH=str(tmp_path)).strip()
    assert Path(path).is_relative_to(tmp_path)
