"""Options of the pytest benchmarks, and the same conditions as for `bench.compare`."""

from __future__ import annotations

import pytest

from . import machine
from .cases import MODES


def pytest_addoption(parser):
    parser.addoption("--bench-mode", choices=MODES, default="full", help="short: fewer points and rounds")


def pytest_configure(config):
    try:
        machine.require_extension()
    except machine.Unmeasurable as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session", autouse=True)
def equal_threads():
    with machine.equal_threads(machine.usable_cores()):
        yield
