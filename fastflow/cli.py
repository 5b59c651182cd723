"""The command line: `fastflow sample` and `fastflow info`.

    data set -> VelocityField -> samplers.integrate -> nearest data points -> picture, arrays, a table on the terminal

Importing this module is quick: typer, rich, matplotlib and scikit-learn, which the extra "cli" installs, are imported
where they are used.
"""

# Typer reads the commands' annotations, which name what `_application` imports: they must not be kept as strings.
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from . import samplers, schedules
from ._optional import require
from ._version import __version__
from .field import VelocityField
from .versions import versions

PICTURES = (".png", ".pdf", ".svg")

# A sample counts as a data point where its distance to one is below this share of the data's root-mean-square
# distance from their mean: far above the rounding of float32, far below what an eye could tell.
_SAME = 1e-3

# Elements of the blocks in which the nearest data points are found: 32 MB of float64.
_BLOCK = 1 << 22

# Samples whose way is recorded: all that a picture holds, and more up to 32 M values.
_MOST_DRAWN = 60
_RECORDED = 1 << 25


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 something is missing or failed, 2 wrong input.

    Args:
        arguments: words after the program's name; those of the process by default.
    """
    try:
        _application()(args=arguments, prog_name="fastflow")
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        _complain(error, 1)


def _complain(error: Exception, status: int) -> None:
    """One line on the standard error stream, and the end."""
    words = " ".join(str(error).split()) or type(error).__name__
    print(f"fastflow: {words}", file=sys.stderr)
    sys.exit(status)


@contextlib.contextmanager
def _checking_input() -> Iterator[None]:
    """Where an error is the user's to mend: its message is enough."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        _complain(error, 2)


def _application() -> Any:
    typer = require("typer", extra="cli")
    require("rich", extra="cli")
    app = typer.Typer(
        name="fastflow",
        help="The exact optimal velocity field of flow matching for a finite data set.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # joins the lines of a paragraph
    )

    def option(*names: str, text: str, **more: Any) -> Any:
        return typer.Option(*names, help=text, **more)

    def show_version(wanted: bool) -> None:
        if wanted:
            print(f"fastflow {__version__}")
            raise typer.Exit

    @app.callback()
    def root(
        version: Annotated[
            bool, option("--version", text="Print the version and exit.", callback=show_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    @app.command("sample")
    def sample_command(
        data: Annotated[
            str, option(text="digits, moons, or an array file: FILE.npy.", metavar="NAME|FILE.npy")
        ] = "digits",
        out: Annotated[Path, option(text="The picture to write: .png, .pdf or .svg.", metavar="FILE")] = Path(
            "samples.png"
        ),
        save: Annotated[
            Path | None, option(text="Also write samples, nearest points and options.", metavar="FILE.npz")
        ] = None,
        num: Annotated[int, option(text="How many samples to draw.", min=1)] = 24,
        steps: Annotated[int, option(text="Number of equal time steps.", min=1)] = 50,
        method: Annotated[str, option(text=f"Integrator: {', '.join(samplers.METHODS)}.")] = "euler",
        schedule: Annotated[str, option(text=f"Schedule: {', '.join(schedules.names())}.")] = "linear",
        variance: Annotated[float, option(text="Variance of each data point.")] = 0.0,
        seed: Annotated[int, option(text="Seed of the starting points and of random steps.", min=0)] = 0,
        backend: Annotated[str, option(text="auto, or one of those that `fastflow info` lists.")] = "auto",
        threads: Annotated[int | None, option(text="Threads to use; all cores by default.")] = None,
        progress: Annotated[bool, option("--progress/--no-progress", text="Show a progress bar.")] = True,
    ) -> None:
        """Draw samples by the exact flow from noise to a data set, and picture each beside its nearest data point.

        digits are the 1,797 handwritten digits of scikit-learn; moons are 1,000 points on two arcs. Of a file, the
        first axis counts the points; uint8 data are scaled from 0..255 to -1..1, others are taken as they are. Points
        of shape (2,) are drawn as a scatter; (h, w), (h, w, c) and (c, h, w) with 1 or 3 channels as images; others as
        lines.
        """
        with _checking_input():
            _writable("--out", out, PICTURES)
            if save is not None:
                _writable("--save", save, (".npz",))
        options = {
            "data": data,
            "num": num,
            "steps": steps,
            "method": method,
            "schedule": schedule,
            "variance": variance,
            "seed": seed,
            "backend": backend,
            "threads": threads,
        }
        _sample(options, out, save, progress)

    @app.command("info")
    def info_command() -> None:
        """Print versions, the backends with the reason for the choice, instruction sets and threads.

        An override in the environment that cannot be honoured is printed in its row; the exit status is 0 all the same.
        """
        _info()

    return app


# sample -------------------------------------------------------------------------------------------------------


class DataSet(NamedTuple):
    """Points to sample from.

    Attributes:
        name: for titles.
        array: (N, *event) array or memory map.
        labels: (N,) class of each point, or None.
        scale, offset: the points are `scale * array + offset`.
        ink: whether images are drawn dark on light.
    """

    name: str
    array: np.ndarray
    labels: np.ndarray | None = None
    scale: float = 1.0
    offset: float = 0.0
    ink: bool = False

    def points(self, which: Any) -> np.ndarray:
        """Some of the points, as float64."""
        return self.array[which].astype(np.float64) * self.scale + self.offset


def load(name: str) -> DataSet:
    """The data set of that name, or the array in that file, mapped into memory.

    Raises:
        ValueError: neither a known name nor the path of a file with an array of points.
        ImportError: scikit-learn, which carries the named data sets, is not installed.
    """
    if name == "digits":
        digits = require("sklearn.datasets", extra="cli").load_digits()
        return DataSet("digits", (digits.images / 8.0 - 1.0).astype(np.float32), digits.target, ink=True)
    if name == "moons":
        points, labels = require("sklearn.datasets", extra="cli").make_moons(1000, noise=0.05, random_state=0)
        points = (points - points.mean(axis=0)) / points.std()
        return DataSet("moons", points, labels)
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"--data {name}: there is no such file; accepted are digits, moons, or the path of a .npy file"
        )
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(
            f"--data {name}: not an array that can be read ({error}); accepted is a .npy file of numbers, "
            "as numpy.save writes it"
        ) from None
    if array.dtype == np.uint8:
        return DataSet(path.stem, array, scale=1.0 / 127.5, offset=-1.0)
    return DataSet(path.stem, array)


class Nearest(NamedTuple):
    """The data point nearest to each sample.

    Attributes:
        indices: (B,) int64.
        distances: (B,) float64, Euclidean.
        radius: root-mean-square distance of the data points from their mean.
    """

    indices: np.ndarray
    distances: np.ndarray
    radius: float

    @property
    def coincide(self) -> np.ndarray:
        """(B,) which samples are a data point, as far as an eye could tell."""
        return self.distances <= _SAME * self.radius


def nearest_points(data: DataSet, samples: np.ndarray) -> Nearest:
    """Compare every sample with every point, block by block; distances are of differences, not of expanded squares."""
    from scipy.spatial.distance import cdist

    flat = samples.reshape(len(samples), -1).astype(np.float64)
    count = len(data.array)
    rows = max(1, _BLOCK // max(flat.shape[1], len(flat)))
    best = np.full(len(flat), np.inf)
    indices = np.zeros(len(flat), dtype=np.int64)
    total, squares = np.zeros(flat.shape[1]), 0.0
    centre = data.points(slice(0, rows)).reshape(-1, flat.shape[1]).mean(axis=0)
    for start in range(0, count, rows):
        block = data.points(slice(start, start + rows)).reshape(-1, flat.shape[1])
        distances = cdist(flat, block)
        near = distances.argmin(axis=1)
        distance = distances[np.arange(len(flat)), near]
        better = distance < best
        best[better], indices[better] = distance[better], near[better] + start
        block -= centre  # the variance by differences from about the mean
        total += block.sum(axis=0)
        squares += np.vdot(block, block)
    spread = squares / count - np.sum((total / count) ** 2)
    return Nearest(indices, best, float(np.sqrt(max(spread, 0.0))))


def decision_times(field: VelocityField, times: np.ndarray, path: np.ndarray) -> np.ndarray:
    """When each sample settles: the first time of the grid at which fewer than two points share its weight.

    Found by bisection (the effective sample size falls along the flow, but for ripples), with each sample at its own
    time: a handful of evaluations of the batch.

    Args:
        field: the field.
        times: (T,) increasing.
        path: (T, B, *event).

    Returns:
        (B,) times; the last one for those that have not settled before it.
    """
    batch = np.arange(path.shape[1])
    before, after = np.full(len(batch), -1), np.full(len(batch), len(times) - 1)
    while np.any(after - before > 1):
        middle = np.maximum((before + after) // 2, 0)
        settled = field.effective_sample_size(path[middle, batch], times[middle]) < 2.0
        before, after = np.where(settled, before, middle), np.where(settled, middle, after)
    return times[after]


class _Recorder:
    """The way of the first few samples: as many as can be drawn, or more where they are small."""

    def __init__(self, start: np.ndarray, steps: int):
        self.count = max(_MOST_DRAWN, _RECORDED // (steps * max(1, start[:1].size)))
        self.times, self.states = [0.0], [start[: self.count].copy()]

    def __call__(self, step: int, t: float, x: np.ndarray) -> None:
        self.times.append(t)
        self.states.append(x[: self.count].copy())


def _sample(options: dict[str, Any], out: Path, save: Path | None, progress: bool) -> None:
    figures = require("fastflow._figures", extra="cli")
    num, steps, method, schedule = (options[name] for name in ("num", "steps", "method", "schedule"))
    with _checking_input():
        data = load(options["data"])
        field = VelocityField(
            data.array,
            variance=options["variance"],
            schedule=schedule,
            scale=data.scale,
            offset=data.offset,
            backend=options["backend"],
            num_threads=options["threads"],
        )
        rng = np.random.default_rng(options["seed"])
        start = samplers.starting_points(field, num, 0.0, rng)
        recorder = _Recorder(start, steps)
        began = time.perf_counter()
        run = samplers.integrate(
            field, start, steps=steps, method=method, seed=rng, progress=progress, callback=recorder
        )
        seconds = time.perf_counter() - began
    times, path = np.array(recorder.times), np.stack(recorder.states)
    nearest = nearest_points(data, run.final)
    settled = decision_times(field, times, path)
    same = int(np.count_nonzero(nearest.coincide))

    grid = "adaptive steps" if method == "dopri5" else _count(steps, "step")
    facts = (
        f"{_count(field.num_points, 'point')} of {_shape(field.event_shape)}",
        f"{schedule} schedule",
        f"variance {options['variance']:g}",
        f"{method}, {grid}",
        f"seed {options['seed']}",
    )
    shown = figures.draw(out, figures.Drawing(data, run.final, times, path, nearest, settled, facts))
    rows = {
        "data": f"{data.name}: {facts[0]}, {data.array.dtype}",
        "flow": f"{facts[1]}, {facts[2]}",
        "backend": f"{field.backend}{f' on {field.isa}' if field.isa else ''} ({field.backend_reason})",
        "integration": f"{_count(num, 'sample')}, {facts[3]}, {seconds:.3g} s",
        "evaluations": f"{_count(run.evaluations, 'velocity', 'velocities')}, {run.evaluations / seconds:,.0f} / s",
        "memorised": f"{same:,} of {_count(num, 'sample')} coincide{'s' * (same == 1)} with a data point",
        "nearest point": f"median distance {np.median(nearest.distances):.3g}, largest {nearest.distances.max():.3g}",
        "settled": _settling(settled, times),
        "picture": str(out) if shown == num else f"{out}, the first {_count(shown, 'sample')}",
    }
    if save is not None:
        with open(save, "wb") as file:
            np.savez_compressed(
                file,
                samples=run.final,
                nearest=nearest.indices,
                distances=nearest.distances,
                options=json.dumps({**options, "backend": field.backend, "version": __version__}),
            )
        rows["arrays"] = str(save)
    _print_rows("fastflow sample", rows)


def _writable(name: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse, before the work, a file that could not be written after it."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{name} {path}: the name must end in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{name} {path}: there is no directory {path.parent}")
    if path.is_dir():
        raise ValueError(f"{name} {path}: this is a directory")
    existed = path.exists()
    try:
        with open(path, "ab"):  # to write nothing
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise ValueError(f"{name} {path}: this cannot be written ({error.strerror or error})") from None


def _settling(settled: np.ndarray, times: np.ndarray) -> str:
    """When the samples whose way was recorded settled, in words."""
    early = settled < times[-1]
    if not early.any():
        return f"none: to the end, t = {times[-1]:g}, two or more points share the weight"
    words = f"median t = {np.median(settled[early]):.2g}, from when on fewer than two points share the weight"
    return words if early.all() else f"{np.count_nonzero(early):,} of {_count(len(settled), 'sample')}, {words}"


def _count(number: int, one: str, more: str | None = None) -> str:
    """A number of things."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _shape(event_shape: tuple[int, ...]) -> str:
    """In words, for titles."""
    if len(event_shape) < 2:
        return _count(math.prod(event_shape), "value")
    return " \u00d7 ".join(str(n) for n in event_shape)


# info ---------------------------------------------------------------------------------------------------------


def _info() -> None:
    _print_rows("fastflow info", versions())


def _print_rows(title: str, rows: dict[str, str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.ROUNDED, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))  # as text: brackets in a path or a message are not markup
    Console().print(table)


if __name__ == "__main__":
    main()
