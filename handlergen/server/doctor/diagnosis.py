"""Every check, in the order in which a person would go: the machine, the configuration, what is there already."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from handlergen.server.doctor import archives, configuration, environment, files
from handlergen.server.doctor.situation import Finding, Severity, Situation, warning

Check = Callable[[Situation], Iterable[Finding]]

#: Title -> checks. To add one, write a function and name it here.
CHECKS: dict[str, tuple[Check, ...]] = {
    "Java": (environment.java,),
    "Python packages": (
        environment.python,
        environment.torchserve,
        environment.torch,
        environment.pyyaml,
        environment.transport,
    ),
    "Devices": (environment.visible_devices, environment.cuda_visible_devices, environment.metrics_packages),
    "Configuration": (
        configuration.file,
        configuration.syntax,
        configuration.unknown,
        configuration.values,
        archives.models_key,
        configuration.named_files,
        configuration.undeclared_metrics,
        configuration.environment,
    ),
    "Access": (configuration.opened, files.key_file),
    "Archives": (archives.store, archives.archives, archives.fit),
    "Ports": (configuration.ports,),
    "Files": (files.server_state, files.left_sockets, files.left_pid_files, files.writable, files.locks),
    "Machine": (environment.shared_memory, environment.disk, environment.workers),
}


@dataclass(frozen=True)
class Section:
    """The findings of the checks under one title."""

    title: str
    findings: tuple[Finding, ...]


def diagnose(situation: Situation) -> list[Section]:
    """Run every check. One that fails is itself a finding: the others still say what they see."""
    return [
        Section(title, tuple(found for check in checks for found in _findings(check, situation)))
        for title, checks in CHECKS.items()
    ]


def worst(sections: Iterable[Section]) -> Severity:
    """The gravest severity among the findings."""
    return max((found.severity for section in sections for found in section.findings), default=Severity.OK)


def _findings(check: Check, situation: Situation) -> list[Finding]:
    try:
        return list(check(situation))
    except Exception as error:
        # Whatever is odd about this machine must not hide what else is wrong with it.
        name = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
        return [
            warning(
                f"the check {name} failed: {type(error).__name__}: {error}", "What it looks at is unknown."
            )
        ]
