"""Looks at everything a server needs and says what is wrong, why it matters and what to do; changes nothing.

A check is a function from a `Situation` to findings; `diagnosis.py` lists them.
"""

from handlergen.server.doctor.diagnosis import Section, diagnose, worst
from handlergen.server.doctor.situation import Finding, Severity, Situation, look_around

__all__ = ["Finding", "Section", "Severity", "Situation", "diagnose", "look_around", "worst"]
