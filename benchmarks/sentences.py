"""Holds the numbers of sentences written by hand to the results: `<!-- numbers NAME: ... -->`.

A comment binds all numbers of the text above it, in their order, to `results/NAME.json`; the text
begins behind the comment, the generated block or the line `## ...` before. Items of a comment:

    0.0163 = gain_on_test                  the figure, at the precision shown
    4.6 = seconds / 60                     figures and numbers, from left to right: + - * /
    3 = count(*.gap_low > 0)               the number of names that `*` may stand for
    1 = count(*.low > 0 of news.* shop.a)  ... of these names; `without`: of all others
    0.03 = max(*.news.spread)              or min
    alone.auc > joint.auc                  what the text says in words
    given 95                               a setting, which is no result

A key is that of a figure, or a dotted way through the JSON; a list stands for its length.
Not read as numbers: code, targets of links, arXiv ids, numbers of a list's items.
"""

import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]

OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv
}  # fmt: skip
COMPARISONS: dict[str, Callable[[float, float], bool]] = {">": operator.gt, "<": operator.lt}
OUTSIDE_BRACKETS = r"(?![^(]*\))"
NUMBER = r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
COMMENT = re.compile(r"<!-- numbers (\w+):(.*?)-->", re.DOTALL)
BOUNDARY = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->|^```.*?^```|^#+ ", re.DOTALL | re.MULTILINE)
NOT_NUMBERS = re.compile(r"`[^`]*`|\]\([^)]*\)|\b\d{4}\.\d{5}\b|^\s*\d+\. ", re.MULTILINE)


@dataclass(frozen=True)
class Passage:
    """Text with the comments that bind its numbers: (name of the result, items)."""

    text: str
    comments: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def items(self) -> list[tuple[str, str]]:
        """All items in their order, each with the name of its result."""
        return [(name, item) for name, items in self.comments for item in items]


def problems(text: str, results: Callable[[str], Result]) -> list[str]:
    """One line for each number or comparison of a page that the results do not bear out."""
    return [line for passage in passages(text) for line in _passage_problems(passage, results)]


def read_result(folder: Path) -> Callable[[str], Result]:
    """Returns what reads `NAME.json` of a folder."""
    return lambda name: json.loads((folder / f"{name}.json").read_text())


def passages(text: str) -> Iterator[Passage]:
    """A page's passages; the last of a part may have no comment."""
    for part in BOUNDARY.sub("\0", text).split("\0"):
        start, found = 0, None
        for comment in COMMENT.finditer(part):
            before = part[start : comment.start()]
            new = (comment[1], _items(comment[2]))
            if found and not before.strip():
                found = Passage(found.text, (*found.comments, new))
            else:
                yield from [found] if found else []
                found = Passage(before, (new,))
            start = comment.end()
        yield from [found] if found else []
        yield Passage(part[start:], ())


def numbers_of(text: str) -> list[str]:
    """The numbers of a text as they are written; `fp32`, `real4` and `recall@20` are names."""
    return re.findall(rf"(?<![\w@.]){NUMBER}", NOT_NUMBERS.sub(" ", text))


def value_of(expression: str, result: Result) -> float:
    """The value of an expression: keys and numbers joined by operators, from left to right."""
    first, *rest = re.split(rf" ([-+*/]) {OUTSIDE_BRACKETS}", expression.strip())
    value = _operand(first, result)
    for sign, text in zip(rest[::2], rest[1::2], strict=True):
        value = OPERATORS[sign](value, _operand(text, result))
    return value


def agrees(shown: str, value: float) -> bool:
    """Whether a number as it is written is the value, at the precision shown."""
    plain = shown.replace(",", "")
    half = 0.5 * 10.0 ** -len(plain.partition(".")[2])
    return abs(float(plain) - value) <= half * (1 + 1e-9)


def _items(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in text.split(";") if item.strip())


def _passage_problems(passage: Passage, results: Callable[[str], Result]) -> Iterator[str]:
    shown = numbers_of(passage.text)
    bound = [number for _, item in passage.items for number in _bound(item)]
    if shown != bound:
        yield f"{_place(passage)}: found numbers {shown}; bound: {bound}"
    for name, item in passage.items:
        yield from _item_problems(item, name, results)


def _place(passage: Passage) -> str:
    return " ".join(passage.text.split())[:60]


def _bound(item: str) -> list[str]:
    """The numbers of the text that an item speaks of."""
    if item.startswith("given "):
        return re.findall(NUMBER, item)
    match = re.match(rf"({NUMBER}) = ", item)
    return [match[1]] if match else []


def _item_problems(item: str, name: str, results: Callable[[str], Result]) -> Iterator[str]:
    if item.startswith("given "):
        return
    try:
        if not _holds(item, results(name)):
            yield f"{name}: {item}: found {_found(item, results(name))}"
    except (KeyError, ValueError, FileNotFoundError) as error:
        yield f"{name}: {item}: {error}"


def _holds(item: str, result: Result) -> bool:
    if _bound(item):
        shown, _, expression = item.partition(" = ")
        return agrees(shown, value_of(expression, result))
    left, sign, right = _comparison(item)
    return COMPARISONS[sign](value_of(left, result), value_of(right, result))


def _found(item: str, result: Result) -> str:
    if _bound(item):
        return f"{value_of(item.partition(' = ')[2], result):.6g}"
    left, _, right = _comparison(item)
    return f"{value_of(left, result):.6g} and {value_of(right, result):.6g}"


def _comparison(text: str) -> list[str]:
    parts = re.split(rf" ([<>]) {OUTSIDE_BRACKETS}", text)
    if len(parts) != 3:
        raise ValueError("allowed: NUMBER = EXPRESSION, EXPRESSION > EXPRESSION, given NUMBER")
    return parts


def _operand(text: str, result: Result) -> float:
    """The value of a number, of `count(...)`, `max(...)`, `min(...)`, or of a key."""
    if re.fullmatch(NUMBER, text):
        return float(text.replace(",", ""))
    call = re.fullmatch(r"(count|max|min)\((.*)\)", text)
    if not call:
        return _number(_at(dict(result["figures"]) | dict(result), text))
    if call[1] == "count":
        return _count(call[2], result["figures"])
    pick = max if call[1] == "max" else min
    return pick(value for _, value in _matching(call[2], result["figures"]))


def _count(text: str, figures: Mapping[str, float]) -> int:
    condition, word, names = re.fullmatch(r"(.*?)(?: (of|without) (.*))?", text).groups()  # pyright: ignore[reportOptionalMemberAccess]
    left, sign, right = re.split(r" ([<>]) ", condition)
    return sum(
        COMPARISONS[sign](value, _side(right, star, figures))
        for star, value in _matching(left, figures)
        if not word or (word == "of") == any(fnmatchcase(star, n) for n in names.split())
    )


def _side(text: str, star: str, figures: Mapping[str, float]) -> float:
    """The right side of a count's condition: a number, or a figure of the same name."""
    return float(text) if re.fullmatch(NUMBER, text) else figures[text.replace("*", star)]


def _matching(pattern: str, figures: Mapping[str, float]) -> list[tuple[str, float]]:
    """What `*` stands for in the names of figures, with their values."""
    regex = re.compile(re.escape(pattern).replace(r"\*", "(.+)"))
    found = [(m[1], value) for key, value in figures.items() if (m := regex.fullmatch(key))]
    if not found:
        raise KeyError(f"no figure is named {pattern}")
    return [(star, value) for star, value in found if math.isfinite(value)]


def _at(tree: Any, key: str) -> Any:
    """The leaf that a dotted way leads to; names on the way may hold dots."""
    if isinstance(tree, list):
        tree = {str(i): value for i, value in enumerate(tree)}
    if not isinstance(tree, Mapping):
        raise KeyError(key)
    if key in tree:
        return tree[key]
    for name, inner in tree.items():
        if key.startswith(f"{name}.") and isinstance(inner, list | Mapping):
            return _at(inner, key.removeprefix(f"{name}."))
    raise KeyError(key)


def _number(leaf: Any) -> float:
    if isinstance(leaf, list | Mapping):
        return len(leaf)
    return float(str(leaf).replace(",", ""))
