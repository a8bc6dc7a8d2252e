"""What the documents say is so: verbs are explained, links lead somewhere, every promise names tests that exist."""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

import handlergen.cli
from handlergen.cli import VERBS, cli
from handlergen.inspection.forms import FORMS

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
        verb for verb, result in shown.items() if f"handlergen {verb}" not in result.output.partition("Example")[2]
    ]
    assert without == []


def test_the_help_has_every_verb_in_a_group_and_stays_one_screen() -> None:
    modules = [
        importlib.import_module(f"handlergen.cli.{each.name}") for each in pkgutil.iter_modules(handlergen.cli.__path__)
    ]
    defined = {value for module in modules for value in vars(module).values() if isinstance(value, click.Command)}
    below = {each for group in defined if isinstance(group, click.Group) for each in group.commands.values()}
    assert {command.name for command in defined - below} == set(VERBS)
    shown = CliRunner().invoke(cli, ["--help"], terminal_width=80).output.splitlines()
    lines = {verb: [line for line in shown if re.match(rf"  [A-Z ][\w ]{{11}}{verb} ", line)] for verb in VERBS}
    assert [verb for verb, found in lines.items() if len(found) != 1] == []
    assert len(shown) <= len(VERBS) + 8
    assert max(map(len, shown)) <= 80


def test_the_readmes_table_has_the_verbs() -> None:
    table = re.search(r"^\| verb \|.*\n\| ---.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert table
    named = {name for row in table[1].splitlines() for name in re.findall(r"`(\w+)", row.split("|")[1])}
    assert named == set(VERBS)


def test_the_readme_names_what_the_package_exports() -> None:
    sentence = re.search(r"`import handlergen` has (.*?)\.\n", README, re.DOTALL)
    assert sentence
    functions = [name for name in handlergen.__all__ if inspect.isfunction(getattr(handlergen, name))]
    assert set(re.findall(r"`(\w+)`", sentence[1])) == {*functions, "Client"}


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
    assert headings == ["Install", "A first model", "See it", "Verbs", "The contract", "Limits"]
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


def promises(page: Path) -> Iterator[list[str]]:
    """The rows of a page's tables of guarantees: what is promised, its limit, its test."""
    for table in re.findall(
        r"^\| guarantee \|.*\n\| ---.*\n((?:\|.*\n)+)", (ROOT / page).read_text("utf-8"), re.MULTILINE
    ):
        for row in table.splitlines():
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_every_promise_names_tests_that_exist() -> None:
    found_in = {page.name: list(promises(page)) for page in PAGES}
    assert {name for name, rows in found_in.items() if rows} >= {"guarantees.md", "offline.md", "placement.md"}
    wrong = []
    for promise, _, proof in itertools.chain(*found_in.values()):
        files = re.findall(r"`(?:tests/)?([\w/]*\w+\.py)(?:::(\w+))?`", proof)
        if not files and "`make soak`" not in proof and "`Makefile`" not in proof:
            wrong.append((promise, "no proof"))
        for file, test in files:
            found = [path for path in (ROOT / "tests").rglob("*.py") if str(path).endswith("/" + file)]
            if not found or (test and not any(f"def {test}(" in path.read_text("utf-8") for path in found)):
                wrong.append((promise, f"{file}::{test}"))
    assert wrong == []


def test_no_cell_of_a_table_is_longer_than_forty_words() -> None:
    cells = [
        (page.name, cell.strip())
        for page in PAGES
        for line in (ROOT / page).read_text("utf-8").splitlines()
        if line.startswith("|")
        for cell in line.split("|")[1:-1]
    ]
    assert len(cells) > 1000
    assert [(name, cell) for name, cell in cells if len(cell.split()) > 40] == []
