"""A field in the workers of a PyTorch DataLoader: the same batches as without workers, forked or spawned.

Before a fork every pool of threads in the parent is warm: that of the backend, of PyTorch, and of scikit-learn. A
worker that hangs fails the test by the loader's own timeout.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import fastflow as ff
from fastflow.adapters.torch import VelocityModule

BATCHES, BATCH = 4, 6
TIMEOUT = 120  # seconds: only a worker that hangs takes so long
METHOD = "fork" if hasattr(os, "fork") else "spawn"


class Batches(Dataset):
    """Each item is a batch, drawn from its own seed."""

    def __init__(self, field, model=None, num_subset=None):
        self.field, self.model, self.num_subset = field, model, num_subset

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        rng = np.random.default_rng((7, index))
        batch = self.field.training_batch(BATCH, num_subset=self.num_subset, rng=rng)
        x, t = torch.from_numpy(batch.x), torch.from_numpy(batch.t)
        result = {"x": x, "t": t, "target": batch.target, "again": self.field.targets(x, t)}
        if self.model is not None:
            leaf = x.clone().requires_grad_()
            (result["gradient"],) = torch.autograd.grad(self.model(leaf, t).sum(), leaf)
        return result


class Stream(IterableDataset):
    """Batches by the seed that the loader gives to each worker."""

    def __init__(self, field):
        self.field = field

    def __iter__(self):
        rng = np.random.default_rng(get_worker_info().seed)
        for _ in range(2):
            yield self.field.training_batch(BATCH, rng=rng)


def field_of(backend):
    # Enough points for several tasks, so that threads have work.
    data = np.random.default_rng(0).standard_normal((2000, 20)).astype(np.float32)
    return ff.VelocityField(data, variance=0.1, backend=backend, num_threads=2)


def warm(field):
    """Start all threads that there are."""
    x = np.zeros((64, 20), np.float32)
    field(x, 0.5)
    torch.set_num_threads(2)
    torch.randn(300, 300) @ torch.randn(300, 300)
    torch.nn.functional.relu(torch.randn(2**17))
    KMeans(3, n_init=1, max_iter=3).fit(np.random.default_rng(0).standard_normal((600, 4)))


def load(dataset, workers, method=None, **options):
    options = {"multiprocessing_context": method, "timeout": TIMEOUT, **options} if workers else options
    return list(DataLoader(dataset, batch_size=None, num_workers=workers, **options))


def compare(field, workers, method):
    dataset = Batches(field, VelocityModule(field))
    want = load(dataset, 0)
    got = load(dataset, workers, method)
    assert len(got) == len(want) == BATCHES
    for have, expected in zip(got, want, strict=True):
        assert set(have) == {"x", "t", "target", "again", "gradient"}
        for name, value in expected.items():
            assert isinstance(have[name], torch.Tensor) and torch.equal(have[name], torch.as_tensor(value)), name
        torch.testing.assert_close(have["again"], have["target"])
    assert torch.equal(field(want[0]["x"], want[0]["t"]), want[0]["again"])  # the parent goes on


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_workers(backend):
    field = field_of(backend)
    warm(field)
    compare(field, 2, "fork")


def test_spawned_workers():
    field = field_of("auto")
    warm(field)
    compare(field, 1, "spawn")


def test_subsets_by_seed(backend):
    field = field_of(backend)
    dataset = Batches(field, num_subset=50)
    for have, expected in zip(load(dataset, 2, METHOD), load(dataset, 0), strict=True):
        assert torch.equal(have["target"], expected["target"])


def test_streams_by_the_seed_of_the_worker():
    dataset = Stream(field_of("auto"))

    def run(seed):
        return load(dataset, 2, METHOD, generator=torch.Generator().manual_seed(seed))

    first, second, other = run(0), run(0), run(1)
    assert len(first) == 4
    assert all(torch.equal(a.x, b.x) and torch.equal(a.target, b.target) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a.x, b.x) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0].x, first[1].x)  # of different workers


def test_workers_that_stay(backend):
    """Two epochs by the same workers, and the parent computes in between."""
    field = field_of(backend)
    warm(field)
    loader = DataLoader(
        Batches(field),
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=METHOD,
        timeout=TIMEOUT,
    )
    for batch in loader:
        field(batch["x"], batch["t"])
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(loader, load(Batches(field), 0), strict=True))
