"""Inspection: from a source to its contract, by reading it. All problems are reported at once; no user code runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from handlergen.errors import Problem
from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.forms import FORMS, form_named
from handlergen.inspection.forms.foreign import refusal
from handlergen.inspection.forms.refused import nearest_form, torchserve_handler
from handlergen.inspection.hook_signatures import replaced_hooks
from handlergen.inspection.source_tree import SourceTree
from handlergen.inspection.used_files import UsedFiles
from handlergen.project.settings import AUTO_FILES, Settings
from handlergen.project.truss import TRUSS_FORM, Truss
from handlergen.project.weights_file import weights_format
from handlergen.runtime.forms.table import DEFAULT_FORM


def read_source(path: Path, *, settings: Settings, root: Path, truss: Truss | None = None) -> Findings:
    """Inspect a source: return its contract or all its problems, and warnings.

    Args:
        path: A `.py` file or a package directory.
        settings: `form`, if it is set, replaces recognition. Paths are relative to `root`. The source that is returned
            has the names of the files instead of `extra_files: auto`.
        root: The project's root.
        truss: The Truss directory of the source; it names the file of the package, and the class.
    """
    tree = SourceTree(root, [root / package for package in settings.packages])
    entry = truss.module if truss else path / "__init__.py" if path.is_dir() else path
    module = tree.open(entry)
    if isinstance(module, Problem):
        return Findings(problems=[module])
    weights = root / settings.weights if settings.weights else None
    detected = settings.weights_format or (weights_format(weights) if weights else None)
    name = path.name if path.is_dir() else path.stem
    base = root if truss else path.parent
    used = UsedFiles(tree, module, own=path, base=base, settings=settings)
    named = used.pack_named() if AUTO_FILES in settings.extra_files else {}
    explicit = (entry for entry in settings.extra_files if entry != AUTO_FILES)
    settings = replace(settings, extra_files=(*explicit, *named))
    source = Source(module, name, tree, settings, root, detected)
    if truss:
        name = ".".join(entry.relative_to(root).with_suffix("").parts)
        source = replace(source, name=name, class_name=truss.class_name, details=truss.details)
    findings = _inspect(source, settings.form or (TRUSS_FORM if truss else None))
    if findings.contract is not None:
        pickles = (settings.weights, *findings.contract.details.get("files", ()), *settings.extra_files)
        used.add_pickles(source, filter(None, pickles), own_main=findings.contract.form == "module")
        findings.missing = tuple(used.missing(findings.contract.details.get("files", ())))
        findings.warnings += replaced_hooks(source, findings.contract)
    findings.warnings += used.warnings
    if named:
        listed = ", ".join(f"{name} ({place})" for name, place in named.items())
        findings.warnings.append(f"extra_files: {AUTO_FILES} packs what the source names: {listed}")
    findings.uses = tuple(used.paths)
    findings.source = source
    return findings


def _inspect(source: Source, wanted: str | None) -> Findings:
    if wanted:
        return form_named(wanted).inspect(source)
    refused = torchserve_handler(source)
    if refused:
        return Findings(problems=[refused])
    matches = [(form, evidence) for form in FORMS if (evidence := form.recognise(source))]
    if len(matches) > 1:
        found = " and ".join(f"{form.name} ({evidence})" for form, evidence in matches)
        fix = f"Choose one: --form {matches[0][0].name}, or form: in handlergen.yaml."
        return Findings(problems=[Problem(source.module.file, 0, f"the form is ambiguous: {found}", fix)])
    if matches:
        return matches[0][0].inspect(source)
    refused = refusal(source)
    if refused:
        return Findings(problems=[refused])
    # No form is recognised: either executable weights predict, or `predict` is missing.
    findings = form_named(DEFAULT_FORM).inspect(source)
    if findings.contract is None and "predict" not in source.module.bindings:
        resembles = nearest_form(source)
        findings.problems = [resembles] if resembles else findings.problems
    return findings
