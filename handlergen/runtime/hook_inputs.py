"""Which parts of a preprocessed request the hooks read that run in another process; no others are sent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .contract import Contract
from .form_table import FORMS
from .hooks import Item
from .requests import Files


class ItemParts(NamedTuple):
    """What hooks may ask for besides `inputs` and `outputs`; None for what no hook asks for."""

    data: Any
    files: Files | None
    entry: Mapping[str, Any] | None
    http: Any


@dataclass(frozen=True)
class HookInputs:
    """What hooks read of a request besides `inputs` and `outputs`.

    Attributes:
        data, files, http: `data`, `files` and `http_request` of their parameters.
    """

    data: bool
    files: bool
    http: bool

    @classmethod
    def of(cls, contract: Contract, roles: Collection[str]) -> HookInputs:
        """Read it from the parameters of the hooks with these roles; a flow's hooks have roles of their own."""
        if FORMS[contract.form].several_models:
            return cls(data=True, files=True, http=True)
        hooks = [hook for role, hook in contract.hooks.items() if role in roles]
        sources = {parameter.source for hook in hooks for parameter in hook.parameters}
        return cls(bool(sources & {"data", "input_data"}), "files" in sources, "http_request" in sources)

    def of_item(self, item: Item) -> ItemParts:
        """Return the parts of an item that are sent."""
        return ItemParts(
            item.data if self.data else None,
            item.files if self.files else None,
            item.entry if self.http else None,
            item.http if self.http else None,
        )
