"""Each adapter imports its own library and no other, and says which extra installs it where it is missing."""

import subprocess
import sys

LIBRARIES = ("torch", "torchdiffeq", "zuko", "flow_matching", "diffusers", "sklearn", "jax")


def python(code: str) -> list[str]:
    """Lines that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


REPORT = f"""
import importlib, sys

def report(*adapters):
    for adapter in adapters:
        try:
            importlib.import_module("fastflow.adapters." + adapter)
        except ImportError as error:
            print(error)
    print("loaded:", *sorted(name for name in {LIBRARIES} if sys.modules.get(name)))
"""


def missed(library: str, extra: str) -> str:
    return f'{library} is not installed; get it with: pip install "fastflow[{extra}]"'


def test_scikit_learn_alone():
    assert python(f"{REPORT}report('sklearn')") == ["loaded: sklearn"]


def test_nothing_installed():
    assert python(f"{REPORT}sys.modules['torch'] = sys.modules['sklearn'] = None\nreport('ode', 'edm', 'sklearn')") == [
        *[missed(name, name) for name in ("torch", "torch", "sklearn")],
        "loaded:",
    ]


def test_torch_alone_and_then_flow_matching():
    assert python(
        f"{REPORT}report('ode', 'edm')\n"
        "sys.modules['flow_matching'] = sys.modules['diffusers'] = None\n"
        "report('flow_matching', 'diffusers')\n"
        "del sys.modules['flow_matching']\n"
        "report('flow_matching')"
    ) == [
        "loaded: torch",
        missed("flow_matching", "flow-matching"),
        missed("diffusers", "diffusers"),
        "loaded: torch",
        "loaded: flow_matching torch",
    ]
