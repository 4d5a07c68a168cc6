"""How large the sizes become that a program describes: weighed before torch and sympy work them out.

A size is text such as `Mul(Integer(8), Symbol('s0'))`, a guard is text such as `L['x'].size()[0] >= 4`, and a program
computes with sizes in its nodes. A few letters can ask for a number that fills any memory, or for a product of sums
that sympy multiplies out for hours. So each is weighed from below upwards: bits of its number, and terms that it has
multiplied out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ...limits import LARGEST_SIZE_BITS, LONGEST_SIZE, MOST_SIZE_TERMS

_SYMBOL_BITS = 64
_COMPARED = 64
"""What maxima and minima of a size are of, all together: sympy compares every two of them."""
_NUMBERS = frozenset(("Integer", "Rational"))


@dataclass(frozen=True)
class Weight:
    """bits: of the largest number it can be; terms: summands where products of sums are multiplied out."""

    bits: int
    terms: int = 1


_SYMBOL = Weight(_SYMBOL_BITS)


class _TooLargeError(Exception):
    """What of a size makes it too large, in words."""


def complaint_of_text(text: str) -> str:
    """Why a size or guard is not worked out; "" where it may be."""
    if len(text) > LONGEST_SIZE:
        return f"it is of {len(text):,} letters, at most {LONGEST_SIZE:,} are read"
    try:
        tree = ast.parse(text, mode="eval")
        _weight(tree.body)
    except _TooLargeError as problem:
        return str(problem)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "it is no arithmetic that is read"
    compared = sum(len(n.args) for n in ast.walk(tree) if isinstance(n, ast.Call) and _is_extreme(n.func))
    return (
        f"it is the largest or smallest of {compared}, at most {_COMPARED} are compared" if compared > _COMPARED else ""
    )


def complaint_of_nodes(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Why the sizes that the nodes of a program compute with are too large; "" where they are not."""
    known: dict[str, Weight] = {}
    for node in nodes:
        target = str(node.get("target"))
        if not target.startswith("_operator."):
            continue
        given = [argument["arg"] for argument in node["inputs"]]
        try:
            found = _operated(target.removeprefix("_operator."), given, known)
        except _TooLargeError as problem:
            return str(problem)
        known.update(dict.fromkeys(_names(node["outputs"]), found))
    return ""


def _is_extreme(function: ast.AST) -> bool:
    return isinstance(function, ast.Name) and function.id in ("Max", "Min")


def _weight(node: ast.AST) -> Weight:
    match node:
        case ast.Constant(value=str()):
            return Weight(1)
        case ast.Constant(value=value):
            return _of_number(value)
        case ast.Call(func=ast.Name(id="Symbol" | "size" | "stride" | "ndim")):
            return _SYMBOL
        case (
            ast.Call(func=ast.Name(id="Pow"), args=[base, exponent])
            | ast.BinOp(left=base, op=ast.Pow(), right=exponent)
        ):
            return _power(_weight(base), _exponent(exponent))
        case ast.Call(func=ast.Name(id="Mul"), args=parts):
            return _product([_weight(part) for part in parts])
        case ast.Call(func=ast.Name(id="Add"), args=parts):
            return _sum([_weight(part) for part in parts])
        case ast.Call(func=ast.Name(), args=parts):
            return _atom([_weight(part) for part in parts])
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _product([_weight(left), _weight(right)])
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return _sum([_weight(left), _weight(right)])
        case ast.BinOp(left=left, right=right):
            return _atom([_weight(left), _weight(right)])
        case ast.UnaryOp(operand=part):
            return _weight(part)
        case ast.Compare(left=left, comparators=parts):
            return _atom([_weight(part) for part in (left, *parts)])
        case ast.BoolOp(values=parts):
            return _atom([_weight(part) for part in parts])
        case ast.Name() | ast.Attribute() | ast.Subscript() | ast.Call(func=ast.Attribute()):
            return _SYMBOL
    raise ValueError(ast.dump(node))


def _operated(name: str, given: Sequence[Any], known: Mapping[str, Weight]) -> Weight:
    """What an operation on numbers gives; of anything else, such as an item of a list, a size as any other."""
    weights = [_of_argument(argument, known) for argument in given]
    if name == "pow":
        return _power(weights[0], _whole(given[1]))
    if name == "mul":
        return Weight(_product(weights).bits)
    if name in ("add", "sub"):
        return Weight(_sum(weights).bits)
    if name in ("floordiv", "mod", "truediv", "neg"):
        return weights[0]
    return _SYMBOL


def _of_argument(argument: Any, known: Mapping[str, Weight]) -> Weight:  # noqa: ANN401  # JSON
    number = _whole(argument)
    if number is not None:
        return _of_number(number)
    return next((known[name] for name in _names(argument) if name in known), _SYMBOL)


def _names(value: Any) -> Iterator[str]:  # noqa: ANN401  # JSON
    """Names of values anywhere in a part of a program."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if isinstance(part, str) and key in ("as_name", "name"):
                yield part
            else:
                yield from _names(part)
    elif isinstance(value, list):
        for part in value:
            yield from _names(part)


def _whole(argument: Any) -> int | None:  # noqa: ANN401  # JSON
    """The whole number that an argument is, if it is one."""
    while isinstance(argument, Mapping) and len(argument) == 1:
        argument = next(iter(argument.values()))
    return argument if isinstance(argument, int) and not isinstance(argument, bool) else None


def _exponent(node: ast.AST) -> int | None:
    """The whole number that an exponent is; of a fraction how large it is at most; None of anything else."""
    match node:
        case ast.Constant(value=int() as value):
            return value
        case ast.UnaryOp(operand=part):
            return _exponent(part)
        case ast.Call(func=ast.Name(id=name), args=[part, *_]) if name in _NUMBERS:
            return _exponent(part)
    return None


def _of_number(value: object) -> Weight:
    return _held(Weight(value.bit_length() if isinstance(value, int) else _SYMBOL_BITS))


def _power(base: Weight, exponent: int | None) -> Weight:
    if exponent is None:
        raise _TooLargeError("it has a power whose exponent is no whole number")
    times = max(1, abs(exponent))
    if base.bits * times > LARGEST_SIZE_BITS:
        raise _TooLargeError(f"it has a power of up to {_bits(base.bits * times)}")
    return _held(Weight(base.bits * times, base.terms**times))


def _product(parts: Sequence[Weight]) -> Weight:
    return _held(Weight(sum(part.bits for part in parts), prod(part.terms for part in parts)))


def _sum(parts: Sequence[Weight]) -> Weight:
    bits = max((part.bits for part in parts), default=0) + len(parts).bit_length()
    return _held(Weight(bits, sum(part.terms for part in parts)))


def _atom(parts: Sequence[Weight]) -> Weight:
    """What no product goes into: a quotient, a remainder, a maximum, a comparison."""
    return Weight(max((part.bits for part in parts), default=1))


def _held(found: Weight) -> Weight:
    if found.bits > LARGEST_SIZE_BITS:
        raise _TooLargeError(f"it has a number of up to {_bits(found.bits)}")
    if found.terms > MOST_SIZE_TERMS:
        raise _TooLargeError(f"multiplied out it has more than {MOST_SIZE_TERMS:,} terms")
    return found


def _bits(count: int) -> str:
    said = f"{count:,}" if count < 10**30 else "more than 10^30"
    return f"{said} bits, at most {LARGEST_SIZE_BITS:,} are worked out"
