"""A bounded parser of arithmetic on non-negative integers, for grading what a model wrote; nothing is ever executed.

    infix     = term (("+" | "-") term)*        term = factor (("*" | "/") factor)*
    factor    = integer | "(" infix ")"
    postfix   = integer | postfix postfix ("+" | "-" | "*" | "/")      (reverse Polish notation)

No unary sign, ASCII digits only, exact rationals. Only postfix of two numbers or more ends in an operator, so the last
token tells which of the two grammars a text is in.
"""

import re
from fractions import Fraction
from typing import NamedTuple

Number = int | Fraction  # an integer where it is one: most steps need no fractions
DIGITS = frozenset("0123456789")
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_ALLOWED = re.compile(r"[-+*/()0-9 \t\r\n]*")
_TOKEN = re.compile(r"[-+*/()]|[0-9]+")


class Limits(NamedTuple):
    """What a text may cost: every bound is inclusive, and a text beyond any of them is invalid."""

    characters: int = 256
    tokens: int = 64
    digits: int = 9  # of one integer
    depth: int = 16  # open parentheses, or operands waiting in postfix
    magnitude: int = 10**18  # of every intermediate numerator and denominator


class Evaluation(NamedTuple):
    """A valid expression: its value, its integers from left to right, and its tokens in reverse Polish notation."""

    value: Fraction
    numbers: tuple[int, ...]
    postfix: tuple[str, ...]

    @property
    def canonical(self) -> str:
        """The postfix tokens with single spaces: "(3+5)*2" and "3 5 + 2 *" are one, "2 * (3+5)" is another."""
        return " ".join(self.postfix)


def evaluate(text: object, limits: Limits = Limits()) -> Evaluation | None:  # noqa: B008 (an immutable tuple)
    """Value of an expression in infix or reverse Polish notation; None for anything else. Never raises.

    Time is linear in the text, and a text over `limits.characters` is rejected before it is read.
    """
    if not isinstance(text, str) or len(text) > limits.characters:
        return None
    tokens = _tokens(text, limits)
    if not tokens:
        return None
    postfix = tokens if tokens[-1] in PRECEDENCE else _infix_to_postfix(tokens, limits)
    return None if postfix is None else _run(postfix, limits)


def _tokens(text: str, limits: Limits) -> list[str] | None:
    """Symbols, and integers without leading zeros; None if a character or a bound says no."""
    if _ALLOWED.fullmatch(text) is None:
        return None
    tokens: list[str] = _TOKEN.findall(text)
    if len(tokens) > limits.tokens or any(len(token) > limits.digits for token in tokens):
        return None
    return [token.lstrip("0") or "0" for token in tokens]


def _infix_to_postfix(tokens: list[str], limits: Limits) -> list[str] | None:
    """Operator precedence with an explicit stack; None where an operand or an operator is out of place."""
    postfix: list[str] = []
    waiting: list[str] = []  # operators and open parentheses
    depth = 0
    operand_next = True
    for token in tokens:
        if operand_next != (token == "(" or token[0] in DIGITS):
            return None
        if token == "(":
            depth += 1
            if depth > limits.depth:
                return None
            waiting.append(token)
        elif token == ")":
            while waiting and waiting[-1] != "(":
                postfix.append(waiting.pop())
            if not waiting:
                return None
            waiting.pop()
            depth -= 1
        elif token in PRECEDENCE:
            while waiting and waiting[-1] != "(" and PRECEDENCE[waiting[-1]] >= PRECEDENCE[token]:
                postfix.append(waiting.pop())
            waiting.append(token)
            operand_next = True
        else:
            postfix.append(token)
            operand_next = False
    if operand_next or depth:
        return None
    return postfix + waiting[::-1]


def _run(postfix: list[str], limits: Limits) -> Evaluation | None:
    """The stack machine; None if operands are missing or left over, at a division by zero, or beyond a bound."""
    stack: list[Number] = []
    numbers: list[int] = []
    for token in postfix:
        if token in PRECEDENCE:
            if len(stack) < 2:
                return None
            right, left = stack.pop(), stack.pop()
            value = apply(token, left, right)
        elif token[0] in DIGITS:
            numbers.append(int(token))
            value = numbers[-1]
        else:
            return None  # a parenthesis in postfix
        if value is None or abs(value.numerator) > limits.magnitude or value.denominator > limits.magnitude:
            return None
        stack.append(value)
        if len(stack) > limits.depth:
            return None
    return Evaluation(Fraction(stack[0]), tuple(numbers), tuple(postfix)) if len(stack) == 1 else None


def apply(operator: str, left: Number, right: Number) -> Number | None:
    """`left operator right` exactly, or None at a division by zero; `operator` is one of + - * /.

    An integer where both are and nothing is left over.
    """
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if not right:
        return None
    return left // right if type(left) is type(right) is int and left % right == 0 else Fraction(left, right)
