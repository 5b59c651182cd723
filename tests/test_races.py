"""The driver and the kernels under ThreadSanitizer: in a C program many threads of several callers use each kernel.

The plain instruction set stands for all, which differ in their vectors alone. Without a compiler that has
ThreadSanitizer this is skipped, but with FASTFLOW_REQUIRE_EMULATORS=1, as the continuous integration has it, it fails.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Optimised the kernels would compile four times as long, and be watched no better.
FLAGS = ["-std=gnu11", "-O0", "-g1", "-fsanitize=thread", "-ffp-contract=off", "-pthread"]


def test_no_thread_races(tmp_path):
    compiler = os.environ.get("CC", "cc")
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    if subprocess.run([compiler, *FLAGS, str(probe), "-o", str(tmp_path / "probe")], check=False).returncode != 0:
        if os.environ.get("FASTFLOW_REQUIRE_EMULATORS") == "1":
            pytest.fail(f"{compiler} has no ThreadSanitizer")
        pytest.skip(f"{compiler} has no ThreadSanitizer")
    table = tmp_path / "targets.def"
    table.write_text("FF_TARGET(plain)\n")

    def compiled(source: Path) -> str:
        made = str(tmp_path / f"{source.stem}.o")
        table_of_one = f'-DFF_TARGETS="{table}"'
        subprocess.run([compiler, *FLAGS, table_of_one, f"-I{ROOT}/csrc", "-c", str(source), "-o", made], check=True)
        return made

    sources = [*ROOT.glob("csrc/*.c"), ROOT / "csrc/isa/plain.c", ROOT / "tests/native/races.c"]
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, sources))
    program = str(tmp_path / "races")
    subprocess.run([compiler, *FLAGS, *objects, "-lm", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    if "unexpected memory mapping" in done.stderr:  # where the system spreads addresses more than it can follow
        command = ["setarch", "-R", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
