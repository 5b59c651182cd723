"""Each adapter imports its own library and no other, and says which extra installs it where it is missing."""

import subprocess
import sys

import pytest

LIBRARIES = ("torch", "torchdiffeq", "zuko", "flow_matching", "diffusers", "sklearn", "jax")


def python(code: str) -> list[str]:
    """Lines that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("adapters", "allowed"),
    [
        (("sklearn",), {"sklearn"}),
        (("ode", "edm"), {"torch"}),
        (("flow_matching",), {"torch", "flow_matching", "torchdiffeq"}),  # the last by flow_matching itself
    ],
)
def test_no_library_but_its_own(adapters, allowed):
    imports = "; ".join(f"import fastflow.adapters.{adapter}" for adapter in adapters)
    (found,) = python(f"import sys; {imports}; print(*({set(LIBRARIES)} & set(sys.modules)))")
    assert set(found.split()) == allowed


def test_a_missing_library_is_missed_by_the_name_of_its_extra():
    def tried(missing: str, adapters: tuple[str, ...]) -> list[str]:
        return python(
            f"""
import importlib, sys
for name in {missing.split()}:
    sys.modules[name] = None
for adapter in {adapters}:
    try:
        importlib.import_module(f"fastflow.adapters.{{adapter}}")
    except ImportError as error:
        print(error)
"""
        )

    assert tried("torch sklearn", ("ode", "edm", "sklearn")) == [
        f'{library} is not installed; get it with: pip install "fastflow[{library}]"'
        for library in ("torch", "torch", "sklearn")
    ]
    assert tried("flow_matching diffusers", ("flow_matching", "diffusers")) == [
        'flow_matching is not installed; get it with: pip install "fastflow[flow-matching]"',
        'diffusers is not installed; get it with: pip install "fastflow[diffusers]"',
    ]
