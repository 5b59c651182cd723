"""The C library called from outside the package: C, Cython, numba and SciPy give the numbers that Python gives.

The examples of docs/native.md are taken from there and run, so that the page stays true.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from conftest import missing_is_allowed
from scipy import integrate

import fastflow as ff
from fastflow import c_api

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs" / "native.md").read_text(encoding="utf-8")
STRICT = ["-Wall", "-Wextra", "-Werror"]


def block(language: str, word: str) -> str:
    """The one example in a language that has a word."""
    (code,) = (c for c in re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if word in c)
    return code


@pytest.fixture(autouse=True)
def require_native():
    info = ff.backends()["native"]
    if not info.available and missing_is_allowed("native"):
        pytest.skip(f"the native backend was left out on purpose: {info.reason}")
    assert info.available, info.reason


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    """The finished process; what it wrote is in the message where it failed."""
    done = subprocess.run(command, capture_output=True, check=False, timeout=120, **options)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done


def compiled(source: Path, folder: Path) -> str:
    """The program of a C file, linked with the installed library and nothing of Python."""
    library = Path(ff.get_library())
    program = str(folder / "program")
    command = [os.environ.get("CC", "cc"), "-std=gnu11", *STRICT, f"-I{ff.get_include()}", str(source), str(library)]
    run([*command, "-lm", "-pthread", f"-Wl,-rpath,{library.parent}", "-o", program])
    return program


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Largest error, relative to the largest value; NaN counts as infinite."""
    error = np.abs(result - expected).max() / np.abs(expected).max()
    return float(np.where(np.isnan(error), np.inf, error))


def expected_of(field: ff.VelocityField, quantity: c_api.Quantity, x: np.ndarray, t) -> np.ndarray:
    if quantity == c_api.Quantity.DENSITY:
        return np.exp(field.log_density(x, t))
    return getattr(field, quantity.name.lower())(x, t)


def fields() -> dict[str, dict]:
    rng = np.random.default_rng(3)
    own = rng.uniform(0.01, 0.3, 60)
    own[7] = 0.0
    factors = rng.normal(size=(60, 3, 3))
    return {
        "plain": {},
        "shared": {"variance": 0.04, "source_variance": 2.0, "schedule": "cosine"},
        "own": {"variance": own, "source_mean": np.array([0.3, -1.0, 2.0])},
        "covariances": {"covariance": factors @ factors.transpose(0, 2, 1) * 0.05, "schedule": "vp"},
        "stored": {"scale": 0.01, "offset": -1.0},
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("quantity", c_api.Quantity)
@pytest.mark.parametrize("model", fields())
def test_quantities(model, quantity, dtype):
    """`ff_points_evaluate` makes of moments what quantities.py makes of them, at one time and at one for each query."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 255, (60, 3)).astype(np.uint8) if model == "stored" else rng.normal(size=(60, 3))
    field = ff.VelocityField(data, backend="native", weights=rng.uniform(size=60), **fields()[model])
    native = c_api.NativeField(field)
    x = rng.normal(size=(9, 3)).astype(dtype)
    for t in (0.0, 0.5, 0.97, rng.uniform(0.0, 0.9, 9)):
        paths = native.path(t)
        assert paths.shape == (*np.shape(t), 7)
        result = np.full(x.shape if quantity.is_vector else len(x), np.nan, dtype if quantity.is_vector else np.float64)
        kind = c_api.DType.FLOAT32 if dtype == np.float32 else c_api.DType.FLOAT64
        status = c_api.library().ff_points_evaluate(
            *(native.points, paths.ctypes.data, np.ndim(t), x.ctypes.data, kind, len(x)),
            *(quantity, result.ctypes.data, 1),
        )
        assert status == 0
        assert relative_error(result, expected_of(field, quantity, x, t)) <= (2e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("differ", ["nowhere", "by point", "by direction"])
@pytest.mark.parametrize("times", ["one", "each"])
def test_a_plain_c_program(differ, times, tmp_path):
    """Where variances differ by direction the field works in other coordinates, and so is an oracle of its own."""
    rng = np.random.default_rng(1)
    data, x = rng.normal(size=(500, 4)), rng.normal(size=(21, 4))
    weights, mean = rng.uniform(0.1, 1.0, 500), rng.normal(size=4)
    t = 0.6 if times == "one" else rng.uniform(0.1, 0.95, 21)
    variance = rng.uniform(0.01, 0.2, {"nowhere": (0, 0), "by point": (500, 1), "by direction": (1, 4)}[differ])
    model = {"by point": {"variance": variance.ravel()}, "by direction": {"covariance": np.diag(variance.ravel())}}
    width = model.get(differ, {"variance": 0.03})
    options = {"weights": weights, "source_mean": mean, "schedule": "vp", "backend": "native"}
    field = ff.VelocityField(data, **width, **options)
    paths = c_api.NativeField(ff.VelocityField(data, variance=0.03, **options)).path(t)
    head = np.array([*data.shape, len(x), paths.size // 7, *variance.shape], dtype=np.int64)
    numbers = (head, data, np.log(weights / weights.sum()), mean, variance, paths, x)
    program = compiled(HERE / "native" / "evaluate.c", tmp_path)
    output = run([program], input=b"".join(np.ascontiguousarray(a).tobytes() for a in numbers)).stdout
    values = np.frombuffer(output)
    for quantity in c_api.Quantity:
        expected = expected_of(field, quantity, x, t)
        result, values = values[: expected.size].reshape(expected.shape), values[expected.size :]
        assert relative_error(result, expected) <= 1e-12, quantity
    if differ == "nowhere":
        first = t if times == "one" else t[0]
        assert relative_error(values, field.moments(x, first).log_total) <= 1e-12


def test_hostile_callers(tmp_path):
    """NULLs and other bad arguments, threads and a fork amid them: see the program. The allocator of AddressSanitizer
    does not know of forks (GCC 12): a child may wait for ever for a lock that another thread held."""
    after = ["fork afterwards"] if "asan" in os.environ.get("LD_PRELOAD", "") else []
    run([compiled(HERE / "native" / "hostile.c", tmp_path), *after])


def test_the_header_alone(tmp_path):
    """It is C99, and C++ where a compiler for that is installed, without extensions of the language."""
    source = tmp_path / "header.c"
    source.write_text("#include <ff.h>\nint main(void) { return ff_abi_version() != FF_ABI_VERSION; }\n")
    dialects = [[os.environ.get("CC", "cc"), "-x", "c", "-std=c99"]]
    dialects += [["c++", "-x", "c++", "-std=c++11"]] if shutil.which("c++") else []
    for dialect in dialects:
        run([*dialect, *STRICT, "-Wpedantic", "-fsyntax-only", f"-I{ff.get_include()}", str(source)])


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_the_library_shows_only_the_api():
    """Its symbols are the functions of the header, it is found by its name, and it brings no search path of its own."""
    listed = run(["nm", "-D", "--defined-only", ff.get_library()], text=True).stdout
    shown = {line.split()[-1] for line in listed.splitlines()}
    shown = {name for name in shown if not name.startswith("_")}  # some linkers show marks of theirs
    header = Path(ff.get_include(), "ff.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^FF_API .*?\**(ff_\w+)\(", header, re.MULTILINE))
    assert len(declared) > 10
    assert shown == declared
    dynamic = run(["readelf", "-d", ff.get_library()], text=True).stdout
    assert "soname: [libfastflow.so]" in dynamic
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    assert "libpython" not in dynamic


def test_the_page_in_c(tmp_path):
    source = tmp_path / "program.c"
    source.write_text(block("c", "int main"))
    result = np.array(run([compiled(source, tmp_path)], text=True).stdout.split(), dtype=float)
    expected = ff.velocity(np.array([[0.5, 0.25]]), 0.5, np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
    assert relative_error(result, expected[0]) <= 1e-14


def test_the_page_in_cython(tmp_path):
    """Compiled against the installed pxd, header and library, outside the package's own folder."""
    (tmp_path / "caller.pyx").write_text(block("cython", "velocity"))
    (tmp_path / "setup.py").write_text(block("python", "Extension"))
    run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tmp_path, env={**os.environ, "CFLAGS": "-O0"})
    path = tmp_path / f"caller{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("caller", path)
    caller = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(caller)
    rng = np.random.default_rng(2)
    data, x = rng.normal(size=(40, 3)), rng.normal(size=(5, 3))
    assert relative_error(caller.velocity(data, x, 0.3), ff.velocity(x, 0.3, data)) <= 1e-12
    with pytest.raises(ValueError, match="out of its range"):
        caller.velocity(data, x, 1.0)


def test_the_page_in_numba():
    names = {}
    exec(compile(block("python", "numba"), "native.md", "exec"), names)
    x = names["x"]
    for t in names["times"]:
        x = x + 0.1 * names["field"](x, t)
    assert relative_error(names["end"], x) <= 1e-12
    with pytest.raises(ValueError, match="ff_points_evaluate failed"):
        names["euler"](0, names["native"].path(names["times"]), 0.1, x.copy())


def test_the_page_in_scipy():
    names = {}
    exec(compile(block("python", "integrate"), "native.md", "exec"), names)
    assert abs(names["mass"] - 1.0) <= 1e-9
    field = ff.VelocityField(names["data"], variance=0.04)
    low, high = field.log_density(np.array([[-2.0], [0.5]]), 0.6)
    assert abs(names["rise"] - (high - low)) <= 1e-9


@pytest.mark.parametrize("quantity", c_api.Quantity, ids=lambda q: q.name.lower())
def test_integrands(quantity):
    """Each is the quantity at a point: in two dimensions by its integral along a line, as quad fixes the others."""
    rng = np.random.default_rng(4)
    field = ff.VelocityField(rng.normal(size=(30, 2)), variance=0.3, backend="native")
    name, component = quantity.name.lower(), int(quantity.is_vector)
    result, _ = integrate.quad(c_api.NativeField(field).integrand(0.4, name, component), -1.0, 1.5, args=(0.25,))

    def value(first: float) -> float:
        return float(np.ravel(expected_of(field, quantity, np.array([[first, 0.25]]), 0.4))[component])

    expected, _ = integrate.quad(value, -1.0, 1.5)
    assert abs(result - expected) <= 1e-9 * max(1.0, abs(expected))


def test_an_integrand_keeps_what_it_needs():
    field = ff.VelocityField(np.zeros((1, 1)), variance=0.5, backend="native")
    integrand = c_api.NativeField(field).integrand(0.5)
    del field
    assert abs(integrate.quad(integrand, -8.0, 8.0)[0] - 1.0) <= 1e-9


def test_enumerators_and_layouts_are_those_of_the_header(tmp_path):
    source = tmp_path / "enumerators.c"
    claims = [f"FF_{member.name} == {int(member)}" for kind in (c_api.Quantity, c_api.DType) for member in kind]
    layout = c_api._Integrand
    claims += [f"offsetof(ff_integrand, {name}) == {getattr(layout, name).offset}" for name, _ in layout._fields_]
    claims.append(f"sizeof(ff_integrand) == {ctypes.sizeof(layout)}")
    lines = ["#include <ff.h>", "#include <stddef.h>", *(f'_Static_assert({claim}, "{claim}");' for claim in claims)]
    source.write_text("\n".join((*lines, "int main(void) { return 0; }\n")))
    compiled(source, tmp_path)


def test_what_cannot_be_handed_over():
    data = np.eye(2)
    for field, error, message in (
        (data, TypeError, "field is ndarray; accepted is a VelocityField"),
        (ff.VelocityField(data, backend="numpy"), ValueError, "field has the backend 'numpy'; accepted is 'native'"),
        (ff.VelocityField(data, covariance=np.eye(2), backend="native"), ValueError, "field holds its points in the"),
    ):
        with pytest.raises(error, match=message):
            c_api.NativeField(field)
    native = c_api.NativeField(ff.VelocityField(data, backend="native"))
    for arguments, error, message in (
        ((0.5, "speed"), ValueError, "quantity is 'speed'; accepted is one of velocity, "),
        ((0.5, 3), ValueError, "quantity is 3; accepted is one of"),
        ((0.5, "score", 2), ValueError, "component is 2; accepted is 0 to 1 for score"),
        ((0.5, "density", 1), ValueError, "component is 1; accepted is 0 to 0 for density"),
        ((0.5, "score", 0.5), TypeError, "component is 0.5; accepted is a whole number"),
        ((1.5,), ValueError, "t is 1.5"),
        (([0.1, 0.2],), ValueError, "t has shape"),
    ):
        with pytest.raises(error, match=message):
            native.integrand(*arguments)


def test_an_installation_without_the_library_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(c_api, "_PACKAGE", tmp_path)
    for call in (ff.get_include, ff.get_library):
        with pytest.raises(FileNotFoundError, match=r"installed without its C library.*FASTFLOW_REQUIRE_EXTENSION=1"):
            call()
