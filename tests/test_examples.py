"""Each script of docs/examples runs from the installed package, says what it found, and writes its picture."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not part of this copy")

# Sizes that take a second or two; for each its results, as patterns of a number, and the least and most it may be.
SMALL = {
    "torchdiffeq_sampling": (
        ["--data", "50", "--num", "10"],
        [(r"on a data point, within 0.01: ([\d.]+)%", 100, 100), (r"field.sample, within 0.01: ([\d.]+)%", 100, 100)],
    ),
    "network_distance": (
        ["--data", "100", "--steps", "200", "--batch", "256", "--num", "256"],
        [(r"relative error of the network: ([\d.]+)%", 5, 60)],
    ),
    "solvers_and_schedules": (
        ["--num", "4", "--evaluations", "4", "64"],
        [(r"linear +rk4 .* ([\d.]+)\n", 0, 0.01)],
    ),
    "gradient_guidance": (
        ["--num", "3", "--steps", "40"],
        [(r"with guidance: misfit of the upper half ([\d.]+)", 0, 0.25)],
    ),
}


def test_every_example_is_here_and_in_the_list():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    listed = set(re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert scripts == set(SMALL) == listed


@pytest.mark.parametrize("name", SMALL)
def test_example(name, tmp_path, monkeypatch, capsys):
    arguments, expected = SMALL[name]
    picture = tmp_path / f"{name}.png"
    # In this process: what the scripts import takes longer to load than they take to run.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "--out", str(picture)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    for pattern, least, most in expected:
        found = re.search(pattern, printed)
        assert found, printed
        assert least <= float(found.group(1)) <= most
