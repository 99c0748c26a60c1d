"""Numbers written as Python arithmetic, worked out on the syntax tree and never executed."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any, cast

from segdet.errors import ConfigError

Number = int | float
Names = dict[str, Any]

OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.Pow: lambda a, b: a**b,
}
SIGNS: dict[type[ast.unaryop], Callable[[Number], Number]] = {
    ast.UAdd: lambda a: +a,
    ast.USub: lambda a: -a,
}
LONGEST_TEXT = 1000
LARGEST = 1e12  # of any number on the way; far above pixels, far below what takes time
MOST_STEPS = 10_000  # of the whole calculation


def evaluate(text: str) -> Any:
    """The value of numbers, + - * / // % **, lists, and `[... for x in ...]` over lists.

    detectron2's RetinaNet files write their anchor sizes so, under a YAML tag that would have
    Python execute the text.

    Raises:
        ConfigError: anything else is in the text, or a number or the work gets too large.

    Examples:
        >>> evaluate("[[x, x * 2 ** 0.5] for x in [32, 64]]")
        [[32, 45.254833995939045], [64, 90.50966799187809]]
    """
    if len(text) > LONGEST_TEXT:
        raise ConfigError(f"is {len(text)} characters long; at most {LONGEST_TEXT} are read")
    try:
        return _Calculation().value(ast.parse(text.strip(), mode="eval").body, {})
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"is no Python expression: {error}") from None
    except ArithmeticError as error:
        raise ConfigError(f"cannot be worked out: {error}") from None


class _Calculation:
    """Counts its steps, and the numbers of lists used again: nested ones cannot make it long."""

    def __init__(self) -> None:
        self.steps = 0

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise ConfigError(f"takes more than {MOST_STEPS} steps")

    def value(self, node: ast.expr, names: Names) -> Any:
        self.spend(1)
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return _small(number)
            case ast.List(elts=items):
                return [self.value(item, names) for item in items]
            case ast.Name(id=name) if name in names:
                self.spend(_numbers_in(names[name]))
                return names[name]
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in SIGNS:
                return SIGNS[type(sign)](self.number(operand, names))
            case ast.BinOp(op=op) if type(op) in OPERATORS:
                left, right = self.number(node.left, names), self.number(node.right, names)
                if isinstance(op, ast.Pow) and (abs(left) > 1e3 or abs(right) > 4):
                    raise ConfigError("takes a power beyond 1000 ** 4")
                return _small(OPERATORS[type(op)](left, right))
            case ast.ListComp(
                elt=element,
                generators=[
                    ast.comprehension(target=ast.Name(id=name), ifs=[], is_async=0) as loop
                ],
            ):
                items = self.value(loop.iter, names)
                if not isinstance(items, list):
                    raise ConfigError(f"runs over {ast.unparse(loop.iter)}, which is no list")
                listed = cast("list[Any]", items)
                return [self.value(element, names | {name: item}) for item in listed]
            case _:
                raise ConfigError(
                    f"holds {ast.unparse(node)!r}; only numbers, + - * / // % **, lists and "
                    "[... for x in ...] over them are read"
                )

    def number(self, node: ast.expr, names: Names) -> Number:
        value = self.value(node, names)
        if not isinstance(value, (int, float)):
            raise ConfigError(f"calculates with {ast.unparse(node)}, which is no number")
        return value


def _numbers_in(value: Any) -> int:
    if not isinstance(value, list):
        return 1
    return 1 + sum(_numbers_in(item) for item in cast("list[Any]", value))


def _small(number: Any) -> Number:
    if not isinstance(number, (int, float)) or not abs(number) <= LARGEST:
        raise ConfigError(f"reaches {number!r}; numbers go up to {LARGEST:g}")
    return number
