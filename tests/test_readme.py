"""README.md says what is true: its example runs, its table and its commands name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import fastflow as ff
from fastflow import quantities, schedules

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert len([line for line in code.splitlines() if line]) == 10
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    data, x = names["data"], names["x"]
    assert x.shape == names["v"].shape == names["noise"].shape == (8, 2)
    assert x.dtype == names["v"].dtype == np.float32
    assert names["indices"].shape == names["weights"].shape == (8, 5)
    assert set(names["both"]) == {"target_mean", "log_density"}
    assert np.isfinite(names["noise"]).all()
    # Within six standard deviations of a data point.
    distances = np.linalg.norm(x[:, None] - data[None], axis=-1).min(axis=1)
    assert distances.max() < 6 * np.sqrt(1e-3)


def test_the_table_names_every_quantity():
    rows = re.findall(r"^\| `(\w+)", README, re.MULTILINE)
    assert rows[: len(quantities.QUANTITIES)] == list(quantities.QUANTITIES)
    for name in rows:
        assert callable(getattr(ff.VelocityField, name))


def test_every_schedule_and_backend_is_named():
    for name in (*schedules.names(), *ff.backends()):
        assert f"`{name}`" in README


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^):]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (Path(__file__).parent.parent / link).is_file()
