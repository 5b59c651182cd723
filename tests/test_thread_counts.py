"""How many threads a call takes: told by the call, the context or the field, else what the machine gives."""

import contextlib
import importlib
import math
import threading

import numpy as np
import pytest

import fastflow as ff
from fastflow.backends import cores


def test_threads_of_a_call_and_of_a_context(backend, monkeypatch):
    """A call's own number goes before that of the context, and that before the field's; results are the same."""
    seen = []
    inner = cores.threads_of_call
    for module in ("native", "numba"):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(f"fastflow.backends.{module}")
            monkeypatch.setattr(module, "threads_of_call", lambda own: seen.append(inner(own)) or seen[-1])
    rng = np.random.default_rng(0)
    data, x = rng.normal(size=(500, 20)).astype(np.float32), rng.normal(size=(30, 20)).astype(np.float32)
    field = ff.VelocityField(data, backend=backend, num_threads=5)
    want = field(x, 0.5)
    with ff.threads(3):
        np.testing.assert_array_equal(field(x, 0.5), want)
        np.testing.assert_array_equal(field(x, 0.5, num_threads=2), want)
        with ff.threads(1):
            np.testing.assert_array_equal(field.evaluate(x, 0.5)["velocity"], want)
    np.testing.assert_array_equal(field(x, 0.5), want)
    if backend != "numpy":
        assert list(dict.fromkeys(seen)) == [5, 3, 2, 1] and seen[-1] == 5


@pytest.mark.parametrize("bad", [0, -1, 1025, 1.5, "2", True, None])
def test_threads_that_are_no_number(bad):
    with (
        pytest.raises((TypeError, ValueError), match=r"num_threads is .*; accepted is a whole number"),
        ff.threads(bad),
    ):
        pass


def test_the_context_is_of_one_python_thread():
    told = []
    with ff.threads(3):
        other = threading.Thread(target=lambda: told.append(cores.threads_of_call(7)))
        other.start()
        other.join()
        told.append(cores.threads_of_call(7))
    assert told == [7, 3] and cores.threads_of_call(7) == 7


def test_two_hardware_threads_of_a_core_are_one(tmp_path):
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert cores._physical(frozenset(range(4)), tmp_path) == 2
    assert cores._physical(frozenset({0, 2}), tmp_path) == 1
    assert cores._physical(frozenset({0, 1, 9}), tmp_path) == 3  # of the last the system says nothing


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({}, math.inf),
    ],
)
def test_limits_of_control_groups(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores._quota(tmp_path) == quota


@pytest.mark.parametrize(("quota", "threads"), [(math.inf, 4), (8.0, 4), (1.5, 2), (0.2, 1)])
def test_the_default(monkeypatch, quota, threads):
    monkeypatch.setattr(cores, "_physical", lambda processors: 4)
    monkeypatch.setattr(cores, "_quota", lambda: quota)
    assert cores.usable_cores() == threads
