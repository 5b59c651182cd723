"""Compile the kernels of the numba backend, so that the tests find them in numba's cache."""

import numpy as np

import fastflow as ff

rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    for size in (3, 40):  # few dimensions and many
        data, x = (rng.standard_normal((count, size)).astype(dtype) for count in (300, 20))
        for options in ({}, {"variance": rng.uniform(0.1, 1.0, len(data))}):
            field = ff.VelocityField(data, backend="numba", num_threads=1, **options)
            for some in (x, x.astype(np.float64), x[:2]):
                field.evaluate(some, 0.5)
                field.weights(some, 0.5)
            field.divergence(x, 0.5)
