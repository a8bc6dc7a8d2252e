"""Which names a function binds, and how."""

from __future__ import annotations

import ast

from handlergen.source_module import Function as FunctionNode


class BoundNames(ast.NodeVisitor):
    """What a function binds.

    Args:
        function: Its definition.

    Attributes:
        assigned: Parameters, and names bound by its statements.
        comprehended: Names bound by its comprehensions.
        globals, nonlocals: Names that it declares to be another's.
        own: Names that are its own.
    """

    def __init__(self, function: FunctionNode) -> None:
        args = function.args
        self.assigned = {argument.arg for argument in (*args.posonlyargs, *args.args, *args.kwonlyargs)}
        self.assigned |= {star.arg for star in (args.vararg, args.kwarg) if star is not None}
        self.comprehended: set[str] = set()
        self.globals: set[str] = set()
        self.nonlocals: set[str] = set()
        body = [function.body] if isinstance(function, ast.Lambda) else function.body
        for node in body:
            self.visit(node)
        self.own = (self.assigned | self.comprehended) - self.globals - self.nonlocals

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self.assigned.add(node.id)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.assigned.add(node.name)
        for decorator in node.decorator_list:
            self.visit(decorator)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.assigned.add(node.name)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Its names are its own."""

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for inner in ast.walk(node.target):
            if isinstance(inner, ast.Name):
                self.comprehended.add(inner.id)
        self.visit(node.iter)
        for test in node.ifs:
            self.visit(test)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.assigned |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}

    visit_ImportFrom = visit_Import

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.assigned.add(node.name)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        if node.name:
            self.assigned.add(node.name)
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest:
            self.assigned.add(node.rest)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self.globals |= set(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.nonlocals |= set(node.names)
