"""What the documents say is so: verbs are explained, commands have their options, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

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


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb: str) -> None:
    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0
    assert f"handlergen {verb}" in result.output.partition("Example")[2]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_stands_in_the_readme(verb: str) -> None:
    assert re.search(rf"^\| .*`{verb}\b", README, re.MULTILINE), f"no row for {verb}"


def test_the_readme_promises_no_verb_that_is_not_there() -> None:
    table = re.search(r"^\| verb \|.*\n\| ---.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert table
    named = {name for row in table[1].splitlines() for name in re.findall(r"`(\w+)", row.split("|")[1])}
    assert named == set(VERBS)


@pytest.mark.parametrize("form", [form.name for form in FORMS])
def test_every_form_stands_in_the_readme(form: str) -> None:
    assert f"| `{form}` |" in README


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


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_whole() -> None:
    """It once lost its last section to an edit: what it must have, and a way to every page."""
    headings = re.findall(r"^## (.+)$", FENCE.sub("", README), re.MULTILINE)
    assert headings == ["Install", "A first model", "See it", "Verbs", "The contract", "Limits"]
    assert "no longer maintained upstream" in README.partition("## Limits")[2]
    assert {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")} <= links(Path("README.md"))


@pytest.mark.parametrize("words", commands(README) + commands(CONTRIBUTING), ids=" ".join)
def test_commands_in_the_documents_are_understood(words: list[str]) -> None:
    verb = cli.get_command(click.Context(cli), words[0])
    assert verb is not None, words[0]
    options = {name for parameter in verb.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for word in words[1:] if word.startswith("-")}
    assert used <= options | {"--help"}
