from __future__ import annotations

import inspect
from typing import Any

from handlergen.creation.draft import Draft


def write_callable(draft: Draft, role: str, function: Any) -> None:
    text = inspect.getsource(function).replace(f"def {function.__name__}(", f"def {role}(")
    if role in ("load", "preprocess", "predict", "postprocess"):
        draft.hooks[role] = text
    else:
        draft.definitions.append(text)
