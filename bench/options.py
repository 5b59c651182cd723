"""The options that several benchmarks take."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from fastflow.backends.cores import usable_cores

from .cases import MODES, NAMES
from .rivals import BASELINE


def parser(name: str, words: str, rounds: Mapping[str, int]) -> argparse.ArgumentParser:
    """A parser with --mode, --rounds (by default those of the mode) and --num-threads.

    Args:
        name: of the module in this package.
        words: its docstring, the first paragraph of which is shown.
        rounds: by mode.
    """
    made = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=words.split("\n\n")[0])
    made.add_argument("--mode", choices=MODES, default="full", help="short: small sizes, few rounds, no targets")
    defaults = ", ".join(f"{mode}: {rounds[mode]}" for mode in ("full", "short"))
    made.add_argument("--rounds", type=int, help=f"rounds of each measurement ({defaults})")
    made.add_argument("--num-threads", type=int, default=usable_cores(), help="for all on the processor, BLAS too")
    return made


def add_cases(to: argparse.ArgumentParser) -> None:
    """Add --cases and --contenders."""
    to.add_argument("--cases", nargs="+", choices=NAMES, default=NAMES, metavar="CASE", help=", ".join(NAMES))
    to.add_argument("--contenders", nargs="+", metavar="NAME", help=f"beside {BASELINE} (default: all that run)")


def parsed(
    by: argparse.ArgumentParser, rounds: Mapping[str, int], arguments: Sequence[str] | None
) -> argparse.Namespace:
    """The options, with the rounds of the mode where none are given; exits where they are not accepted."""
    found = by.parse_args(arguments)
    if found.rounds is None:
        found.rounds = rounds[found.mode]
    if found.rounds < 1 or found.num_threads < 1:
        by.error("--rounds and --num-threads must be at least 1")
    return found
