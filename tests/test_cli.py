"""The command line, run as a user runs it, and its parts."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys

import numpy as np
import pytest

import fastflow as ff
from fastflow import cli

pytest.importorskip("typer")
pytest.importorskip("rich")
matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run the command line in an empty folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in arguments])
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return call


def sample(run, *arguments):
    return run("sample", "--no-progress", *arguments)


# Running ------------------------------------------------------------------------------------------------------


def test_the_main_job(run, tmp_path):
    status, out, err = run("sample", "--data", "digits", "--out", "samples.png", "--save", "samples.npz", "--num", 7)
    assert status == 0, err
    assert "100%" in err and "euler" in err  # the progress bar
    for words in ("1,797 points of 8 \u00d7 8", "7 samples", "euler, 50 steps", "350 velocities", "samples.png"):
        assert words in out
    assert "7 of 7 samples coincide with a data point" in out
    picture = matplotlib.image.imread(tmp_path / "samples.png")
    assert picture.shape[0] > 200 and picture.shape[1] > 800 and picture.std() > 0.05
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as saved:
        assert saved["samples"].shape == (7, 8, 8) and saved["samples"].dtype == np.float32
        options = json.loads(str(saved["options"]))
        data = cli.load("digits").array
        np.testing.assert_allclose(saved["samples"], data[saved["nearest"]], atol=1e-5)
        assert saved["distances"].max() < 1e-4
        expected = ff.VelocityField(data).sample(7, seed=0)
    np.testing.assert_array_equal(saved_samples(tmp_path), expected)
    assert options["num"] == 7 and options["backend"] in ff.backends() and options["version"] == ff.__version__


def saved_samples(folder):
    with np.load(folder / "samples.npz") as saved:
        return saved["samples"]


def test_options_reach_the_sampler(run, tmp_path):
    words = "--data moons --num 5 --steps 12 --method heun --schedule cosine --variance 0.01 --seed 3 --threads 1"
    status, out, err = sample(run, *words.split(), "--backend", "numpy", "--save", "samples.npz", "--out", "moons.pdf")
    assert (status, err) == (0, "")
    assert "asked for by backend='numpy'" in out
    assert "cosine schedule, variance 0.01" in out and "heun, 12 steps" in out and "120 velocities" in out
    field = ff.VelocityField(cli.load("moons").array, variance=0.01, schedule="cosine", backend="numpy")
    np.testing.assert_array_equal(saved_samples(tmp_path), field.sample(5, steps=12, method="heun", seed=3))
    assert (tmp_path / "moons.pdf").read_bytes().startswith(b"%PDF")


SHAPES = [
    ((), np.float64),
    ((1,), np.float32),
    ((2,), np.float32),
    ((5,), np.float64),
    ((600,), np.float32),
    ((2, 3), np.int16),
    ((6, 6), np.uint8),
    ((6, 6, 3), np.uint8),
    ((6, 6, 1), np.float32),
    ((3, 6, 6), np.float32),
    ((1, 6, 6), np.float32),
    ((2, 2, 2, 2), np.float32),
]
# More samples than a picture shows: one shape for each kind of picture, as many small ones take seconds to draw.
MANY = [(*SHAPES[i], 70) for i in (0, 2, 3, 6)]


@pytest.mark.parametrize(("shape", "dtype", "num"), [*((*one, num) for one in SHAPES for num in (1, 9)), *MANY])
def test_pictures_of_every_shape(run, tmp_path, shape, dtype, num):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(20, *shape))
    array = rng.integers(0, 100, size=array.shape) if np.dtype(dtype).kind in "iu" else array
    np.save(tmp_path / "own.npy", array.astype(dtype))
    status, out, err = sample(run, "--data", "own.npy", "--num", num, "--steps", 4, "--method", "dopri5")
    assert (status, err) == (0, "")
    assert "own: 20 points of" in out
    assert (tmp_path / "samples.png").stat().st_size > 3000


def test_one_point_that_never_varies(run, tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((1, 4, 4), dtype=np.float32))
    status, _, err = sample(run, "--data", "flat.npy", "--num", 2, "--out", "flat.svg")
    assert (status, err) == (0, "")
    assert "<svg" in (tmp_path / "flat.svg").read_text()[:2000]


def test_8_bit_files_are_scaled_and_stay_on_disk(tmp_path):
    array = np.arange(256, dtype=np.uint8).reshape(16, 4, 4)
    np.save(tmp_path / "own.npy", array)
    data = cli.load(str(tmp_path / "own.npy"))
    assert isinstance(data.array, np.memmap)
    points = data.points(slice(None))
    assert points.min() == -1.0 and points.max() == 1.0
    field = ff.VelocityField(data.array, scale=data.scale, offset=data.offset)
    np.testing.assert_allclose(field.target_mean(points[3], 1.0), points[3], atol=1e-6)


def test_info(run):
    status, out, err = run("info")
    assert (status, err) == (0, "")
    for words in ("fastflow info", ff.__version__, "chosen backend", "threads", *ff.backends()):
        assert words in out
    for info in ff.backends().values():
        assert all(isa in out for isa in info.isas)


@pytest.mark.parametrize(
    ("name", "value"),
    [("BACKEND", "fortran"), ("ISA", "avx9000"), ("NUM_THREADS", "99999999999"), ("NUM_THREADS", "many")],
)
def test_info_of_an_override_that_cannot_be_honoured(run, monkeypatch, capfd, name, value):
    """This is where to look for the reason: it is printed, and the status is 0."""
    monkeypatch.setenv(f"FASTFLOW_{name}", value)
    status, out, err = run("info")
    assert (status, err) == (0, "")
    assert f"FASTFLOW_{name}" in out and value in out
    ff.show_versions()
    assert f"FASTFLOW_{name}" in capfd.readouterr().out


def test_version_and_help(run):
    assert run("--version")[:2] == (0, f"fastflow {ff.__version__}\n")
    status, out, _ = run("sample", "--help")
    assert status == 0
    for option in (
        "data",
        "out",
        "save",
        "num",
        "steps",
        "method",
        "schedule",
        "variance",
        "seed",
        "backend",
        "threads",
    ):
        assert f"--{option} " in out
    assert "--no-progress" in out


def test_import_is_quick_and_main_runs_as_a_module(tmp_path):
    """The heavy libraries come in when they are used, and the module is a program."""
    heavy = ("typer", "rich", "matplotlib", "sklearn", "scipy", "tqdm", "numba")
    code = f"import fastflow.cli, sys; print([name for name in {heavy} if name in sys.modules])"
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    assert subprocess.run([sys.executable, "-c", code], **options).stdout == "[]\n"
    done = subprocess.run([sys.executable, "-m", "fastflow.cli", "--version"], **options)
    assert (done.returncode, done.stdout) == (0, f"fastflow {ff.__version__}\n")


def test_when_samples_settle_or_never_do(run):
    words = "from when on fewer than two points share the weight"
    _, out, _ = sample(run, "--data", "moons", "--num", 20, "--method", "dopri5")
    assert "20 of 20 samples coincide with a data point" in out and f"settled       │ median t = 0.99, {words}" in out
    _, out, _ = sample(run, "--data", "moons", "--num", 20, "--variance", 1)
    assert "settled       │ none: to the end, t = 1, two or more points share the weight" in out
    assert "median t" not in out and "0 of 20 samples coincide" in out
    # The command of README.md, whose words say how many arrive
    _, out, _ = sample(run, "--data", "moons", "--num", 300, "--steps", 100)
    assert "111 of 300 samples coincide with a data point" in out and f"of 300 samples, median t = 0.99, {words}" in out
    assert "largest 0.03" in out


def test_one_of_a_thing(run, tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((1, 1)))
    _, out, _ = sample(run, "--data", "one.npy", "--num", 1, "--steps", 1)
    for words in ("1 point of 1 value", "1 sample, euler, 1 step, ", "1 velocity, ", "1 of 1 sample coincides with"):
        assert words in out
    _, out, _ = sample(run, "--data", "one.npy", "--num", 2, "--steps", 2)
    for words in ("2 samples, euler, 2 steps, ", "4 velocities, ", "2 of 2 samples coincide with"):
        assert words in out


# Bad input ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_refused_before_the_work(run, tmp_path, monkeypatch):
    def no_work(*arguments):
        raise AssertionError("the work began")

    monkeypatch.setattr(cli, "_sample", no_work)
    (tmp_path / "there.png").write_bytes(b"kept")

    def open_others(path, mode, refused):
        if path.name == refused:
            raise PermissionError(13, "Permission denied")
        return contextlib.nullcontext(path.touch())

    for option, name in (("--out", "new.png"), ("--out", "there.png"), ("--save", "new.npz")):
        monkeypatch.setattr(cli, "open", functools.partial(open_others, refused=name), raising=False)
        status, out, err = sample(run, option, name)
        assert (status, out) == (2, "")
        assert err == f"fastflow: {option} {name}: this cannot be written (Permission denied)\n"
    monkeypatch.delattr(cli, "open")
    with pytest.raises(AssertionError, match="the work began"):
        cli.main(["sample", "--out", "there.png"])
    with pytest.raises(AssertionError, match="the work began"):
        cli.main(["sample", "--out", "new.png"])
    assert [path.name for path in tmp_path.iterdir()] == ["there.png"]  # what is tried leaves nothing behind
    assert (tmp_path / "there.png").read_bytes() == b"kept"


@pytest.fixture
def files(tmp_path):
    np.save(tmp_path / "nan.npy", np.array([[0.0, 1.0], [np.nan, 0.0]]))
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.save(tmp_path / "none.npy", np.zeros((0, 2)))
    np.save(tmp_path / "scalar.npy", np.float64(3.0))
    np.savez(tmp_path / "many.npz", a=np.zeros(3))
    (tmp_path / "words.npy").write_text("not an array")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data missing.npy", "--data missing.npy: there is no such file; accepted are digits, moons, or the path"),
        ("--data .", "--data .: there is no such file"),
        ("--data words.npy", "--data words.npy: not an array that can be read"),
        ("--data many.npz", "--data many.npz: not an array that can be read"),
        ("--data objects.npy", "--data objects.npy: not an array that can be read"),
        ("--data nan.npy", "data[1, 0] is nan; every value of data must be finite"),
        ("--data text.npy", "data has dtype <U1"),
        ("--data scalar.npy", "data is a scalar"),
        ("--data none.npy", "data has shape (0, 2); at least one point"),
        ("--schedule sine", "unknown schedule 'sine'; known names are 'linear'"),
        ("--backend fortran", "backend='fortran' is unknown; accepted is one of auto, native, numba, numpy"),
        ("--method midpoint", "method 'midpoint' is unknown; accepted is one of euler, heun, rk4, dopri5"),
        ("--variance -1", "variance is -1.0; accepted is a finite number of at least 0"),
        ("--variance nan", "variance is nan"),
        ("--threads 0", "num_threads is 0"),
        ("--out samples.txt", "--out samples.txt: the name must end in .png or .pdf or .svg"),
        ("--out nowhere/samples.png", "--out nowhere/samples.png: there is no directory nowhere"),
        ("--save samples.npy", "--save samples.npy: the name must end in .npz"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, files, arguments, message):
    status, out, err = sample(run, *arguments.split())
    assert status == 2
    assert out == ""
    assert err.startswith("fastflow: ") and err.count("\n") == 1
    assert message in err
    assert not (files / "samples.png").exists()


@pytest.mark.parametrize("arguments", ["--num 0", "--num many", "--steps 0", "--seed -1", "--colour red", "extra"])
def test_what_typer_refuses_has_status_2(run, arguments):
    status, out, err = sample(run, *arguments.split())
    assert status == 2 and out == ""
    assert "Usage: fastflow sample" in err and "Traceback" not in err


def test_an_override_that_cannot_be_honoured(run, monkeypatch):
    monkeypatch.setenv("FASTFLOW_BACKEND", "fortran")
    status, _, err = sample(run)
    assert status == 2 and "FASTFLOW_BACKEND=fortran is unknown" in err


@pytest.mark.parametrize(
    ("library", "command"),
    [("typer", "info"), ("rich", "info"), ("tqdm", "sample"), ("sklearn", "sample"), ("matplotlib", "sample")],
)
def test_a_missing_library_names_the_extra(run, monkeypatch, library, command):
    for name in [name for name in sys.modules if name.partition(".")[0] == library or name == "fastflow._figures"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    status, out, err = run(command)
    assert (status, out) == (1, "")
    extra = "progress" if library == "tqdm" else "cli"
    assert err == f'fastflow: {library} is not installed; get it with: pip install "fastflow[{extra}]"\n'


# Parts --------------------------------------------------------------------------------------------------------


def test_nearest_points_across_blocks(monkeypatch):
    monkeypatch.setattr(cli, "_BLOCK", 64)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 2, 2)) + 100.0
    samples = np.concatenate((points[[40, 3]], rng.normal(size=(6, 2, 2)) + 100.0))
    found = cli.nearest_points(cli.DataSet("own", points), samples)
    distances = np.linalg.norm((samples[:, None] - points[None]).reshape(8, 50, 4), axis=-1)
    np.testing.assert_array_equal(found.indices, distances.argmin(axis=1))
    np.testing.assert_allclose(found.distances, distances.min(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(found.coincide, [True, True] + 6 * [False])
    assert found.radius == pytest.approx(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=(1, 2)).mean()))


def test_decision_times():
    """Two points: the weight is shared until the sample has left the middle."""
    field = ff.VelocityField(np.array([[-1.0], [1.0]]))
    times, path = field.sample(np.array([[0.02], [-0.5], [3.0]]), steps=40, return_path=True)
    settled = cli.decision_times(field, times, path)
    shared = field.effective_sample_size
    for k, t in enumerate(settled):
        at = int(np.flatnonzero(times == t)[0])
        assert shared(path[at, k], t) < 2.0
        assert at == 0 or shared(path[at - 1, k], times[at - 1]) >= 2.0 - 1e-9
