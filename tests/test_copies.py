"""Copies of a field: copy, deepcopy, pickle, and on their way to another process."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re

import numpy as np
import pytest

import fastflow as ff

QUANTITIES = (
    "velocity",
    "target_mean",
    "source_mean",
    "score",
    "log_density",
    "entropy",
    "effective_sample_size",
)


@pytest.fixture
def data():
    return np.random.default_rng(0).standard_normal((6, 3))


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((4, 3))


MODELS = {
    "plain": {},
    "weights": {"weights": [1, 2, 0, 4, 5, 6], "source_mean": 1.5, "schedule": "vp"},
    "labels": {"labels": [0, 1, 1, 0, 2, 2], "variance": 0.1},
    "each": {"variance": np.linspace(0, 1, 6), "schedule": ff.schedules.VE(0.01, 9.0)},
    "covariance": {"covariance": np.diag([1.0, 2.0, 3.0]), "source_covariance": np.diag([1.0, 4.0, 2.0])},
}


@pytest.mark.parametrize("model", MODELS)
def test_a_copy_is_the_same_field(variant, data, x, model):
    field = variant.field(data, num_threads=2, **MODELS[model])
    field.posterior_sample(x, 0.5)  # what it keeps for later stays behind
    want = field.evaluate(x, 0.5, QUANTITIES)
    for copied in (pickle.loads(pickle.dumps(field)), copy.deepcopy(field), copy.copy(field)):
        assert repr(copied) == repr(field)
        assert copied.backend_reason == field.backend_reason and copied._choice == field._choice
        got = copied.evaluate(x, 0.5, QUANTITIES)
        for name in QUANTITIES:
            assert np.array_equal(got[name], want[name]), name
        assert np.array_equal(copied.weights(x, 1.0), field.weights(x, 1.0))
        assert np.array_equal(copied.sample(3, seed=1), field.sample(3, seed=1))
        if model == "labels":
            assert np.array_equal(copied.velocity(x, 0.5, label=1), field.velocity(x, 0.5, label=1))
    assert not np.shares_memory(copy.deepcopy(field)._parts.points.data, field._parts.points.data)


def test_a_copy_of_a_memory_map(variant, data, x, tmp_path):
    np.save(tmp_path / "data.npy", data)
    field = variant.field(np.load(tmp_path / "data.npy", mmap_mode="r"))
    copied = pickle.loads(pickle.dumps(field))
    (tmp_path / "data.npy").unlink()
    assert np.array_equal(copied.velocity(x, 0.5), field.velocity(x, 0.5))


def test_a_copy_where_less_can_run(monkeypatch, data, x):
    """The instruction set, or the backend, gives way to the best there is, and the reason tells."""
    field = ff.VelocityField(data)
    state = field.__getstate__()
    name, isa, threads, reason = state["choice"]
    monkeypatch.setenv("FASTFLOW_BACKEND", "nonsense")  # not asked: the choice has been made
    for chosen in ((name, "avx9000", threads, reason), ("fortran", isa, threads, reason)):
        copied = ff.VelocityField.__new__(ff.VelocityField)
        copied.__setstate__({**state, "choice": chosen})
        assert copied.backend in ff.backends() and copied.isa in (None, *ff.backends()[copied.backend].isas)
        assert re.search("avx9000|fortran", copied.backend_reason) and "cannot run here" in copied.backend_reason
        np.testing.assert_allclose(copied.velocity(x, 0.5), field.velocity(x, 0.5), rtol=1e-12)
    assert state == field.__getstate__() or state["choice"] == field.__getstate__()["choice"]


def test_a_copy_in_another_process(backend, data, x):
    field = ff.VelocityField(data, backend=backend, num_threads=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(field.velocity, (x, 0.5))
    assert np.array_equal(got, field.velocity(x, 0.5))
