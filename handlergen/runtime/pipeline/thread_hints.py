"""What to do about an object or a call that is bound to a thread: for the log, and for `handlergen check`."""

from __future__ import annotations

import sqlite3

SQLITE = "Open the connection with check_same_thread=False, or in the hook."
SIGNAL = "Call it where the module is imported, or in load."
EVENT_LOOP = "Make the hook async, and call asyncio.get_running_loop()."
THREAD_LOCAL = "Values set outside the hook are missing in other threads: use a contextvars.ContextVar."


def thread_hint(error: BaseException) -> str:
    """Return why an error of Python's came up in a hook, and what to do; "" for any other error."""
    text = str(error.args[0]) if error.args else ""
    advice = ""
    if isinstance(error, sqlite3.ProgrammingError) and "created in a thread" in text:
        advice = SQLITE
    elif type(error) is ValueError and text.startswith("signal only works in main thread"):
        advice = SIGNAL
    elif type(error) is RuntimeError and text.startswith("There is no current event loop"):
        advice = EVENT_LOOP
    where = "Hint: hooks run in several threads when requests come at once, and async hooks in a thread of their own."
    return f"{where} {advice}\n" if advice else ""
