"""Run a model's examples without a server, compare the answers, and record those that are right."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from handlergen.archives.mar import archived_examples
from handlergen.errors import HandlergenError, ModuleFailed
from handlergen.inspection.project import Project, open_project
from handlergen.local.clean import CleanRun, ask_in_clean_process
from handlergen.local.model import LocalAnswer
from handlergen.project.examples import examples_of_project, read_examples, write_answer
from handlergen.project.settings import shown
from handlergen.runtime.codec.comparison import Difference
from handlergen.runtime.codec.redaction import hide, without_secrets
from handlergen.runtime.examples import Example, RightAnswer, differences_text


class WrongExamples(HandlergenError):
    """Examples were answered wrongly; the message has each place that differs."""


@dataclass(frozen=True)
class ExampleRun:
    """How an example was answered.

    Attributes:
        differences: From the right answer; none if it is right, or no answer is known to be.
    """

    example: Example
    answer: LocalAnswer
    differences: list[Difference]

    @classmethod
    def of(cls, example: Example, answer: LocalAnswer) -> ExampleRun:
        """Compare an answer."""
        return cls(example, answer, example.compare(answer.status, answer.content_type, answer.body))

    def as_json(self) -> dict[str, Any]:
        """Return name, whether the answer is compared and right, and the differences."""
        return {
            "name": self.example.name,
            "compared": self.example.answer is not None,
            "right": not self.differences,
            "status": self.answer.status,
            "differences": [each._asdict() for each in self.differences],
        }


@dataclass(frozen=True)
class Recorded:
    """An answer that was written to `path`; `differences` from the one before, None if there was none."""

    name: str
    path: Path
    differences: list[Difference] | None


def examples_of(source: Path, *, overrides: Mapping[str, Any] | None = None) -> list[Example]:
    """Return the examples of a source or of an archive; raises as `open_project` and `archived_examples` do."""
    if source.suffix == ".mar":
        return list(archived_examples(source))
    project = open_project(source, overrides=overrides)
    return examples_of_project(project.root, project.settings.examples)


def run_examples(
    source: Path,
    examples: Sequence[Example],
    *,
    gpu: int | None = None,
    any_runtime: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> list[ExampleRun]:
    """Ask a source or an archive its examples in a clean process; the other arguments are `load`'s.

    Raises:
        ModuleFailed: The model cannot be loaded.
        HandlergenError: As `load` does.
    """
    ran = ask_in_clean_process(source, examples, gpu=gpu, any_runtime=any_runtime, overrides=overrides)
    return [ExampleRun.of(example, answer) for example, answer in zip(examples, ran.answers, strict=True)]


def require_right(runs: Sequence[ExampleRun], *, hint: str) -> None:
    """Raise WrongExamples, with this hint, if an example was answered wrongly."""
    wrong = [(run.example, run.differences) for run in runs if run.differences]
    if wrong:
        raise WrongExamples(
            f"{len(wrong)} of {len(runs)} examples are answered wrongly (right answer ≠ this one):\n"
            f"{differences_text(wrong)}",
            hint=hint,
        )


def require_right_examples(
    project: Project, source: Path, *, gpu: int | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Ask a project its examples, if it has any, before it is archived.

    Returns:
        A warning if they could not be asked, because a package is not installed here.

    Raises:
        WrongExamples: An answer is wrong.
        ModuleFailed: The model cannot be loaded here.
        ContractError: The examples cannot be read.
    """
    examples = examples_of_project(project.root, project.settings.examples)
    if not examples:
        return ()
    advice = "--no-examples packs them without asking (in Python: ask_examples=False)"
    try:
        runs = run_examples(source, examples, gpu=gpu, overrides=overrides)
    except ModuleFailed as error:
        missing = re.search(r"No module named '([^'.]+)\S*'; it is neither in the archive nor installed", error.message)
        if missing:
            return (f"the examples were not asked: the package {missing[1]} is not installed here",)
        error.hint = f"{error.hint}; {advice}" if error.hint else f"to ask the examples, the model is loaded; {advice}"
        raise
    require_right(runs, hint=f"correct the module or the examples; --record-examples takes these answers; {advice}")
    return ()


def record_examples(
    project: Project, source: Path, *, gpu: int | None = None, overrides: Mapping[str, Any] | None = None
) -> list[Recorded]:
    """Write the answers of a project's examples to `examples/`, except those given in handlergen.yaml.

    Each is asked twice in one clean process and once in another, and written only if the answers agree.

    Raises:
        HandlergenError: There is nothing to record; an example fails; an answer is random, or has a secret's value or
            a path of this machine in it. Nothing is written then.
        ModuleFailed: The model cannot be loaded.
    """
    found = read_examples(project.root, project.settings.examples)
    examples = [each.example for each in found if each.recorded]
    if not examples:
        raise HandlergenError(
            f"there is no example to record in {shown(project.root)}",
            hint="write a request to examples/NAME.request.json (or .png, .txt, ...)",
        )
    first = ask_in_clean_process(source, [*examples, *examples], gpu=gpu, overrides=overrides)
    again = ask_in_clean_process(source, examples, gpu=gpu, overrides=overrides)
    answers = first.answers[: len(examples)]
    _require_success(examples, first)
    for others in (first.answers[len(examples) :], again.answers):
        _require_equal(examples, answers, others)
    require_portable(project, examples, answers)
    recorded = []
    for example, answer in zip(examples, answers, strict=True):
        before = example.compare(answer.status, answer.content_type, answer.body) if example.answer else None
        right = RightAnswer(answer.content_type, answer.body)
        recorded.append(Recorded(example.name, write_answer(project.root, example.name, right), before))
    return recorded


def _require_success(examples: Sequence[Example], ran: CleanRun) -> None:
    failed = [
        f"example {example.name}: {answer.status} {answer.body.decode('utf-8', 'replace')[:300]}"
        for example, answer in zip(examples, ran.answers, strict=False)
        if answer.status >= 400
    ]
    if failed:
        raise HandlergenError(
            "\n".join(["examples failed, so that nothing was recorded:", *failed, ran.traceback]).rstrip(),
            hint="correct the request or the module",
        )


def _require_equal(examples: Sequence[Example], answers: Sequence[LocalAnswer], others: Sequence[LocalAnswer]) -> None:
    for example, answer, other in zip(examples, answers, others, strict=True):
        right = replace(example, answer=RightAnswer(answer.content_type, answer.body))
        found = right.compare(other.status, other.content_type, other.body)
        if found:
            raise HandlergenError(
                f"the answer of example {example.name} is not the same each time: {found[0]}",
                hint="seed the model in load, or give the example a wider tolerance or `runs: true` in handlergen.yaml",
            )


def require_portable(project: Project, examples: Sequence[Example], answers: Sequence[LocalAnswer]) -> None:
    """Raise HandlergenError for an answer with a secret's value or a path of this machine in it."""
    secrets = {name: os.environ[name] for name in project.settings.secrets if os.environ.get(name)}
    hide(secrets)
    here = {str(path) for path in (Path.home(), project.root.resolve(), Path(tempfile.gettempdir()).resolve())} - {"/"}
    for example, answer in zip(examples, answers, strict=True):
        text = answer.body.decode("utf-8", "replace")
        if without_secrets(text) != text:
            raise HandlergenError(
                f"the answer of example {example.name} has the value of a secret in it; nothing was recorded",
                hint="answer without it, or give the example `runs: true` in handlergen.yaml",
            )
        found = next((path for path in here if path in text), None)
        if found is not None:
            raise HandlergenError(
                f"the answer of example {example.name} has a path of this machine in it, {found}; nothing was recorded",
                hint="answer without it, or give the example `runs: true` in handlergen.yaml",
            )
