"""Safe selection expressions such as `n_lepton == 1 and 100 < mbb < 140`: parsed, never passed to eval.

Allowed: names, numbers, comparisons (also chained), `and`, `or`, `not`, `+ - * / %`, parentheses and the functions
`abs(...)`, `log(...)`, `sqrt(...)`.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hepx.errors import ConfigError, closest

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {"abs": np.abs, "log": np.log, "sqrt": np.sqrt}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: lambda left, right: (left != right) & (left == left) & (right == right),
}


def cuts(expression: str) -> list[str]:
    """Split an expression at its outermost `and`, for a cut-flow.

    >>> cuts("n_jet >= 2 and (met > 100 or mt > 50)")
    ['n_jet >= 2', 'met > 100 or mt > 50']
    """
    tree = _parse(expression)
    if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And):
        return [ast.unparse(value) for value in tree.values]
    return [ast.unparse(tree)]


def evaluate(expression: str, values: Mapping[str, Any]) -> Any:
    """Evaluate an expression on arrays (numpy or awkward, any common shape).

    A comparison with NaN (an undefined quantity) is false, whatever the comparison; its `not` is true.

    Raises ConfigError for a syntax that is not allowed and for an unknown name, with the nearest known one.

    >>> evaluate("1 < x < 3 and not y", {"x": np.array([2, 5]), "y": np.array([False, False])})
    array([ True, False])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return _evaluate(_parse(expression), values, expression)


def condition(expression: str, values: Mapping[str, Any], where: str, example: str = "") -> np.ndarray[Any, Any]:
    """Where it holds: bool, of the shape of the arrays. ConfigError, which begins with `where`, as by `evaluate`, and
    for an expression that is a number.

    >>> condition("x > 3", {"x": np.array([2, 5])}, "data.select")
    array([False,  True])
    """
    try:
        found = np.asarray(evaluate(expression, values))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if found.dtype != bool:
        example = example or f"{expression} > 0"
        raise ConfigError(f"{where}: '{expression}' is a number, not a condition; for example {example}")
    return found


def names(expression: str) -> set[str]:
    """The quantities that an expression uses.

    >>> sorted(names("abs(eta) < 2.8 and pt > 30"))
    ['eta', 'pt']
    """
    found = {node.id for node in ast.walk(_parse(expression)) if isinstance(node, ast.Name)}
    return found - set(_FUNCTIONS)


def _parse(expression: str) -> ast.expr:
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        raise ConfigError(
            f"selection '{expression}' is not valid: {error.msg} at character {error.offset}. "
            "Example: n_lepton == 1 and met > 100"
        ) from error


def _evaluate(node: ast.expr, values: Mapping[str, Any], expression: str) -> Any:
    def inner(child: ast.expr) -> Any:
        return _evaluate(child, values, expression)

    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return np.float64(value)  # so that 1/0 is infinite, as in an array
        case ast.Name():
            if node.id not in values:
                raise ConfigError(f"selection '{expression}': unknown quantity '{node.id}'; {closest(node.id, values)}")
            return values[node.id]
        case ast.BoolOp(op=op):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            result = inner(node.values[0])
            for child in node.values[1:]:
                result = combine(result, inner(child))
            return result
        case ast.UnaryOp(op=ast.Not()):
            return np.logical_not(inner(node.operand))
        case ast.UnaryOp(op=ast.USub()):
            return -inner(node.operand)
        case ast.BinOp(op=op) if type(op) in _BINARY:
            return _BINARY[type(op)](inner(node.left), inner(node.right))
        case ast.Compare(ops=ops) if all(type(op) in _COMPARE for op in ops):
            terms = [inner(child) for child in (node.left, *node.comparators)]
            result = _COMPARE[type(ops[0])](terms[0], terms[1])
            for compare, left, right in zip(ops[1:], terms[1:], terms[2:], strict=False):
                result = np.logical_and(result, _COMPARE[type(compare)](left, right))
            return result
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](inner(argument))
    raise ConfigError(
        f"selection '{expression}': '{ast.unparse(node)}' is not allowed; "
        "use names (without quotes), numbers, comparisons, and/or/not (no & and |), + - * / %, abs(), log() and sqrt()."
    )
