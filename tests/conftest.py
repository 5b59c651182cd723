"""Fixtures that enumerate the registry, so that a new backend is tested without being named."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from types import ModuleType

import pytest

import fastflow as ff

OVERRIDES = ("FASTFLOW_BACKEND", "FASTFLOW_ISA", "FASTFLOW_NUM_THREADS")


def missing_is_allowed(name: str) -> bool:
    """Only an installation that was asked to leave the extension out may lack one, and only it."""
    return name == "native" and os.environ.get("FASTFLOW_NO_EXTENSION") == "1"


@dataclass(frozen=True)
class Variant:
    """One backend, and for the native one the instruction set it is told to use."""

    backend: str
    isa: str | None = None

    def __str__(self):
        return self.backend if self.isa is None else f"{self.backend}-{self.isa}"

    @property
    def info(self):
        return ff.backends()[self.backend]

    def field(self, data, **options) -> ff.VelocityField:
        """A field of this variant, after checking that it is the one that will run."""
        with pytest.MonkeyPatch.context() as patch:
            if self.isa is not None:
                patch.setenv("FASTFLOW_ISA", self.isa)
            field = ff.VelocityField(data, backend=self.backend, **options)
        assert field.backend == self.backend
        assert field.isa == self.isa
        return field


def _variants() -> list[Variant]:
    found = []
    for name, info in ff.backends().items():
        isas = (getattr(info, "isas", None) or (None,)) if info.available else (None,)
        found += [Variant(name, isa) for isa in isas]
    return found


def _require(name: str) -> None:
    info = ff.backends()[name]
    if info.available:
        return
    if missing_is_allowed(name):
        pytest.skip(f"the {name} backend was left out on purpose: {info.reason}")
    pytest.fail(f"the {name} backend is missing: {info.reason}")


@pytest.fixture(autouse=True)
def no_overrides(monkeypatch):
    """The suite decides what runs; an override in the caller's environment would change it."""
    for name in OVERRIDES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=list(ff.backends()), scope="session")
def backend(request) -> str:
    _require(request.param)
    return request.param


@pytest.fixture(params=_variants(), ids=str, scope="session")
def variant(request) -> Variant:
    _require(request.param.backend)
    return request.param


def quick_backend() -> str:
    """For tests whose subject is not the backend: one that compiles nothing when it runs."""
    return "native" if ff.backends()["native"].available else "numpy"


def without_dependencies(module: str) -> ModuleType:
    """A module of a package in requirements-no-deps.txt. Without it the test is skipped, but with
    FASTFLOW_REQUIRE_PACKAGES=1, as the continuous integration has it, it fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = f"{module}: {error}; get it with: pip install --no-deps -r tests/requirements-no-deps.txt"
        if os.environ.get("FASTFLOW_REQUIRE_PACKAGES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
