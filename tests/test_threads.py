"""The thread pool of the native backend: concurrent callers, forks with a warm pool, and which variant runs."""

import concurrent.futures
import multiprocessing
import os

import numpy as np
import pytest

import fastflow as ff

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("FASTFLOW_NO_EXTENSION")), reason="the extension was left out on purpose"
)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((3000, 40), dtype=np.float32)
    return data, rng.standard_normal((150, 40), dtype=np.float32)


def make(data, threads=4):
    return ff.VelocityField(data, backend="native", num_threads=threads)


def test_concurrent_callers_get_what_each_would_get_alone(problem):
    data, x = problem
    field = make(data)
    times = np.linspace(0.0, 0.99, 24)
    alone = [field(x, t) for t in times]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(lambda t: field(x, t), times))
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def in_child(connection, field, x):
    connection.send(field(x, 0.3))
    connection.close()


def check_in_child(field, x, want):
    """A forked child computes the same, and ends."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(sender, field, x))
    child.start()
    assert receiver.poll(60), "the child hangs"
    assert np.array_equal(receiver.recv(), want)
    child.join(60)
    assert child.exitcode == 0


def test_fork_with_a_warm_pool(problem):
    data, x = problem
    field = make(data)
    want = field(x, 0.3)  # the pool is running now
    for _ in range(3):
        check_in_child(field, x, want)
    assert np.array_equal(field(x, 0.3), want)


def test_fork_while_other_threads_are_inside(problem):
    data, x = problem
    field = make(data)
    want = field(x, 0.3)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(lambda: [field(x, 0.3) for _ in range(30)]) for _ in range(2)]
        check_in_child(field, x, want)
        for future in busy:
            assert all(np.array_equal(result, want) for result in future.result())


def test_many_more_threads_than_cores(problem):
    data, x = problem
    assert np.array_equal(make(data, 64)(x, 0.3), make(data, 1)(x, 0.3))


def test_nothing_is_written_beyond_the_results(problem):
    """Results of an odd batch lie in the middle of larger arrays whose borders stay as they were."""
    data, x = problem
    field = make(data)
    frame = np.full((19, 40), 7.0, dtype=np.float32)
    field.velocity(x[:17], 0.4, out=frame[1:18])
    assert np.all(frame[[0, 18]] == 7.0)
    assert np.array_equal(frame[1:18], field(x[:17], 0.4))


@pytest.mark.parametrize("isa", ff.backends()["native"].isas)
def test_the_variant_that_was_asked_for_runs(problem, monkeypatch, isa):
    data, x = problem
    monkeypatch.setenv("FASTFLOW_ISA", isa)
    field = make(data)
    assert (field.backend, field.isa) == ("native", isa)
    # The panels of batches are as wide as the vectors, and sums of a panel's logits are rounded by vectors along the
    # dimensions for a single query; where sets differ by matrices alone, the sums of bytes round: proof that it is not
    # one variant under two names.
    stored = np.clip(64.0 * data + 128.0, 0.0, 255.0).astype(np.uint8)

    def results():
        pixels = ff.VelocityField(stored, scale=1 / 64, offset=-2.0, backend="native")
        return np.concatenate((make(data)(x[:1], 0.1), pixels(x, 0.1)))

    own = results()
    for other in ff.backends()["native"].isas:
        if other != isa:
            monkeypatch.setenv("FASTFLOW_ISA", other)
            assert not np.array_equal(own, results())
