"""A schedule's formula as a program: a list of operations that C evaluates where there is no Python.

The formula itself is what is recorded: it is called once with times that are symbols, and elementary functions that
note what is done to them. So a schedule is written down once, and the program gives its numbers bit for bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .schedules import Schedule, _Functions, name_of


class Program(NamedTuple):
    """Operations on numbered values: 0 is t, 1 is 1 - t, then come the constants, then each instruction's result.

    Attributes:
        constants: numbers.
        instructions: triples of the name of an operation and the values that it takes (the first, twice, where it
            takes one).
        outputs: the values that are alpha, beta, d_alpha, d_beta, alpha_d_alpha.
    """

    constants: tuple[float, ...]
    instructions: tuple[tuple[str, int, int], ...]
    outputs: tuple[int, ...]


class NotRecordable(TypeError):
    """The schedule is no formula, and can only be called."""


def recorded(schedule: Schedule) -> Program:
    """The formula of a schedule. Raises NotRecordable, saying why, where there is none that can be recorded."""
    if type(schedule).__call__ is not Schedule.__call__:
        raise NotRecordable(f"schedule {name_of(schedule)!r} is given by functions, not by a formula")
    tape = _Tape()
    try:
        found = schedule._five(schedule._formula(_Value(tape, "t"), _Value(tape, "s"), tape.functions()))
        outputs = [tape.value(number) for number in found]
    except Exception as error:  # whatever a formula of the caller's does with a symbol
        raise NotRecordable(f"the formula of schedule {name_of(schedule)!r} cannot be recorded: {error}") from error
    return tape.program(outputs)


class _Tape:
    """What was done, in order."""

    def __init__(self) -> None:
        self.constants: list[float] = []
        self.steps: list[tuple[str, _Value, _Value]] = []

    def value(self, number: _Value | float) -> _Value:
        """A number that takes part, as a value; each constant is kept once (zeros by their sign)."""
        if isinstance(number, _Value):
            return number
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"it uses {number!r}")
        constant = float(number)
        for index, known in enumerate(self.constants):
            if known == constant and math.copysign(1.0, known) == math.copysign(1.0, constant):
                return _Value(self, "constant", index)
        self.constants.append(constant)
        return _Value(self, "constant", len(self.constants) - 1)

    def apply(self, operation: str, a: _Value | float, b: _Value | float) -> _Value:
        self.steps.append((operation, self.value(a), self.value(b)))
        return _Value(self, "step", len(self.steps) - 1)

    def functions(self) -> _Functions:
        """Elementary functions of values."""
        one = {name: lambda a, name=name: self.apply(name, a, a) for name in ("sqrt", "sin", "exp", "expm1", "log")}
        two = {name: lambda a, b, name=name: self.apply(name, a, b) for name in ("pow", "divide")}
        return _Functions(**one, **two)

    def program(self, outputs: list[_Value]) -> Program:
        """Values by their numbers, now that all constants are known."""
        first = {"t": 0, "s": 1, "constant": 2, "step": 2 + len(self.constants)}

        def numbered(value: _Value) -> int:
            return first[value.kind] + value.index

        steps = tuple((operation, numbered(a), numbered(b)) for operation, a, b in self.steps)
        return Program(tuple(self.constants), steps, tuple(numbered(value) for value in outputs))


class _Value:
    """A number that is not known yet: arithmetic with it is noted, anything else refused."""

    __array_ufunc__ = None  # NumPy's numbers leave arithmetic to the operators below

    def __init__(self, tape: _Tape, kind: str, index: int = 0):
        self.tape, self.kind, self.index = tape, kind, index

    def __add__(self, other: _Value | float) -> _Value:
        return self.tape.apply("add", self, other)

    def __radd__(self, other: float) -> _Value:
        return self.tape.apply("add", other, self)

    def __sub__(self, other: _Value | float) -> _Value:
        return self.tape.apply("subtract", self, other)

    def __rsub__(self, other: float) -> _Value:
        return self.tape.apply("subtract", other, self)

    def __mul__(self, other: _Value | float) -> _Value:
        return self.tape.apply("multiply", self, other)

    def __rmul__(self, other: float) -> _Value:
        return self.tape.apply("multiply", other, self)

    def __truediv__(self, other: _Value | float) -> _Value:
        return self.tape.apply("divide", self, other)

    def __rtruediv__(self, other: float) -> _Value:
        return self.tape.apply("divide", other, self)

    def __neg__(self) -> _Value:
        return self.tape.apply("negate", self, self)

    def __bool__(self) -> bool:
        raise TypeError("it decides by the time")

    def __eq__(self, other: object) -> bool:
        raise TypeError("it compares the time")

    __hash__ = None  # type: ignore[assignment]
