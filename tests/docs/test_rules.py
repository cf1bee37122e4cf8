"""Every rule that the program can name is explained, and nothing else is."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeAlias

PACKAGE = Path(__file__).parents[2] / "citadel_py"

# Names that are put together at run time, by the expression that does it.
COMPOSED = {
    "f'join_token_{state}'": {"join_token_unknown", "join_token_used", "join_token_expired"},
    "f'{prefix}_expired'": {"leaf_expired", "authority_expired"},
    "f'{prefix}_not_yet_valid'": {"leaf_not_yet_valid", "authority_not_yet_valid"},
}
# Rules of errors that are handed on under the name that they came with.
HANDED_ON = re.compile(r"(\w+\.rule|\w+\[0\]\.rule|\w+\['rule'\])")

_RULE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """The rules that one file names, as far as its text tells them."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text())
        self.constants = {
            target.id: node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        self.functions = [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def rules(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef):
                yield from self._codes(node)
            elif isinstance(node, ast.Call) and not ast.unparse(node.func).startswith("_log."):
                yield from self._rules_of(node)

    def _codes(self, node: ast.ClassDef) -> Iterator[str]:
        for statement in node.body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "code":
                yield from strings(statement.value)

    def _rules_of(self, call: ast.Call) -> Iterator[str]:
        for keyword in call.keywords:
            if keyword.arg == "rule":
                yield from self._resolve(keyword.value, call)
        for function in self.functions:
            names = [argument.arg for argument in function.args.args if argument.arg != "self"]
            if "rule" in names and ast.unparse(call.func).removeprefix("self.") == function.name:
                position = names.index("rule")
                for value in call.args[position : position + 1]:
                    yield from self._resolve(value, call)

    def _resolve(self, value: ast.expr, call: ast.Call) -> Iterator[str]:
        text = ast.unparse(value)
        if text in COMPOSED:
            yield from COMPOSED[text]
        elif isinstance(value, ast.JoinedStr):
            raise AssertionError(f"what can {text} be? say it in COMPOSED")
        elif isinstance(value, ast.Name):
            yield from self._assigned(value.id, call)
        elif not HANDED_ON.fullmatch(text):
            yield from self._strings(value)

    def _assigned(self, name: str, call: ast.Call) -> Iterator[str]:
        """What a local variable of the function around the call can be; of a parameter, the callers tell."""
        for function in self.functions:
            if call not in set(ast.walk(function)):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and name in {each.id for each in names_in(node.targets[0])}:
                    yield from self._strings(node.value)

    def _strings(self, value: ast.expr) -> Iterator[str]:
        yield from strings(value)
        for name in names_in(value):
            if name.id in self.constants:
                yield from strings(self.constants[name.id])


def names_in(node: ast.AST) -> list[ast.Name]:
    return [each for each in ast.walk(node) if isinstance(each, ast.Name)]


def strings(node: ast.AST) -> Iterator[str]:
    """The string constants that have the form of a rule."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and _RULE.fullmatch(each.value):
            yield each.value


@cache
def named_in_the_code() -> frozenset[str]:
    paths = [path for path in PACKAGE.rglob("*.py") if "_proto" not in path.parts]
    return frozenset(rule for path in paths for rule in Module(path).rules())


def test_every_rule_is_documented(documented: Callable[[str], list[str]]) -> None:
    assert sorted(named_in_the_code() - set(documented("reference/errors.md"))) == []


def test_every_documented_rule_exists(documented: Callable[[str], list[str]]) -> None:
    assert sorted(set(documented("reference/errors.md")) - named_in_the_code()) == []


def test_a_rule_is_documented_once(documented: Callable[[str], list[str]]) -> None:
    names = documented("reference/errors.md")

    assert len(names) == len(set(names))


def test_rules_are_found_in_every_form_in_which_the_code_names_them() -> None:
    assert named_in_the_code() >= {
        "csr_nul",  # rule="..."
        "not_ready",  # the code of a class
        "jwt_audience",  # a table, handed to a parameter
        "jwt_subject",  # handed to a parameter
        "ledger_disk_full",  # a table, by way of a variable
        "missing_setting",  # a variable with two values
        "join_token_used",  # put together
    }
