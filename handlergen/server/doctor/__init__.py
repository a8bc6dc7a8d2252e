"""The doctor: checks everything that a server needs, and reports what is wrong, why it matters and how to fix it.

A check is a function from a `Situation` to findings; it changes nothing. To add one, write it and name it in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from handlergen.server.doctor import archives, configuration, environment, files
from handlergen.server.doctor.situation import Finding, Severity, Situation, look_around, warning

__all__ = ["Finding", "Section", "Severity", "Situation", "diagnose", "look_around", "worst"]

Check = Callable[[Situation], Iterable[Finding]]

#: Section title -> checks, in the order of the report.
CHECKS: dict[str, tuple[Check, ...]] = {
    "Java": (environment.java,),
    "Python packages": (environment.packages, environment.torch, environment.transport),
    "Devices": (environment.visible_devices, environment.cuda_visible_devices, environment.metrics_packages),
    "Configuration": (
        configuration.file,
        configuration.values,
        archives.models_key,
        configuration.named_files,
        configuration.environment,
    ),
    "Access": (configuration.exposed, configuration.certificate, files.key_file),
    "Archives": (archives.store, archives.versions, archives.archives),
    "Ports": (configuration.ports,),
    "Files": (files.server_state, files.stale_sockets, files.stale_pid_files, files.writable, files.locks),
    "Machine": (environment.shared_memory, environment.disk, environment.workers),
}


@dataclass(frozen=True)
class Section:
    """The findings of the checks under one title."""

    title: str
    findings: tuple[Finding, ...]


def diagnose(situation: Situation) -> list[Section]:
    """Run every check and return the findings; a check that raises is a finding itself."""
    return [
        Section(title, tuple(found for check in checks for found in _findings(check, situation)))
        for title, checks in CHECKS.items()
    ]


def worst(sections: Iterable[Section]) -> Severity:
    """Return the highest severity among the findings."""
    return max((found.severity for section in sections for found in section.findings), default=Severity.OK)


def _findings(check: Check, situation: Situation) -> list[Finding]:
    try:
        return list(check(situation))
    except Exception as error:
        # The other checks must run on an unusual machine, too.
        name = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
        return [warning(f"the check {name} failed: {type(error).__name__}: {error}", "Its subject is unchecked.")]
