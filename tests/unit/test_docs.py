"""What the documents say is so: every verb is explained, and the README's module runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
from click.testing import CliRunner

import handlergen
from handlergen.cli import VERBS, cli
from handlergen.forms import FORMS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text) if name == language]


def commands(text: str) -> list[list[str]]:
    """Every `handlergen VERB ...` in the code blocks of a document, as words; a leading `$ ` is the prompt."""
    found = []
    for _, body in FENCE.findall(text):
        for line in body.splitlines():
            words = line.strip().removeprefix("$ ").split(" #")[0].split("&&")
            found += [part.split()[1:] for part in words if part.split()[:1] == ["handlergen"]]
    return found


def test_help_has_an_example() -> None:
    shown = {verb: CliRunner().invoke(cli, [verb, "--help"]) for verb in VERBS}
    assert {verb: result.exit_code for verb, result in shown.items()} == dict.fromkeys(VERBS, 0)
    without = [
        verb
        for verb, result in shown.items()
        if f"handlergen {verb}" not in result.output.partition("Example")[2]
    ]
    assert without == []


def test_the_readmes_table_has_the_verbs() -> None:
    table = re.search(r"^\| verb \|.*\n\| ---.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert table
    named = {name for row in table[1].splitlines() for name in re.findall(r"`(\w+)", row.split("|")[1])}
    assert named == set(VERBS)


def test_every_form_stands_in_the_readme() -> None:
    assert [form.name for form in FORMS if f"| `{form.name}` |" not in README] == []


LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
PAGES = sorted(page.relative_to(ROOT) for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


def links(page: Path) -> set[str]:
    """Where a page's links go, those on other machines left out; code blocks are no links."""
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return {link for link in LINK.findall(text) if ":" not in link}


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as the usual renderers of Markdown make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for link in links(page):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append((str(page), link))
    assert broken == []


def test_the_readme_is_whole() -> None:
    """It once lost its last section to an edit: what it must have, and a way to every page."""
    headings = re.findall(r"^## (.+)$", FENCE.sub("", README), re.MULTILINE)
    assert headings == ["Install it", "See it", "Verbs", "The contract", "Limits"]
    assert "no longer maintained upstream" in README.partition("## Limits")[2]
    assert {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")} <= links(Path("README.md"))


def test_commands_in_the_documents_are_understood() -> None:
    found = commands(README) + commands(CONTRIBUTING)
    assert len(found) > 5
    wrong = []
    for words in found:
        verb = cli.get_command(click.Context(cli), words[0])
        params = verb.params if verb else []
        options = {name for parameter in params for name in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in words[1:] if word.startswith("-")}
        if verb is None or not used <= options | {"--help"}:
            wrong.append(" ".join(words))
    assert wrong == []


def test_the_readme_module_reads_a_digit(tmp_path: Path) -> None:
    """With weights like those the README packs: an exported program, here a linear one."""
    (module,) = [body for body in blocks(README, "python") if "def predict" in body]
    assert sum(bool(line.strip()) for line in module.splitlines()) <= 12
    source = tmp_path / "digits.py"
    source.write_text(module, encoding="utf-8")
    save_exported_classifier(tmp_path / "digits.pt2")

    example = ROOT / "examples" / "digits"
    with handlergen.load(source, weights="digits.pt2") as model:
        answer = model.predict(example / "sample.png")
    assert answer["digit"] == json.loads((example / "sample.json").read_text())["digit"]
    assert 0.5 < answer["probability"] <= 1


def save_exported_classifier(path: Path) -> None:
    import torch
    from sklearn.datasets import load_digits
    from sklearn.linear_model import RidgeClassifier

    pixels, labels = load_digits(return_X_y=True)
    fitted = RidgeClassifier().fit(pixels / 16, labels)
    linear = torch.nn.Linear(64, 10)
    with torch.no_grad():
        # Its scores lie in -1..1; ten times as far apart, softmax makes probabilities of them.
        linear.weight.copy_(10 * torch.from_numpy(fitted.coef_))
        linear.bias.copy_(10 * torch.from_numpy(fitted.intercept_))
    network = torch.nn.Sequential(torch.nn.Flatten(), linear).eval()
    torch.export.save(torch.export.export(network, (torch.rand(1, 1, 8, 8),)), path)
