"""The documentation is true: its code runs, its commands parse, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from smallvit.cli.app import create_app

ROOT = Path(__file__).parents[1]
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
WRITTEN_LATER = {ROOT / "docs" / "results.md"}
PAGES = [ROOT / name for name in TOP if (ROOT / name).is_file()]
PAGES += sorted((ROOT / "docs").glob("*.md"))

FENCE = re.compile(
    r"(?P<mark><!-- run -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def name_of(page: Path, text: str, match: re.Match[str]) -> str:
    """Name a block by its page and the line it starts on."""
    return f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"


def blocks(language: str, *, marked: bool = False) -> list[tuple[str, str]]:
    """Return name and body of the blocks in a language, all or those marked to be run."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            if match["language"] == language and (match["mark"] or not marked):
                found.append((name_of(page, text, match), match["body"]))
    return found


def commands() -> list[tuple[str, str]]:
    """Return every ``smallvit`` line of the shell blocks, continued lines joined."""
    found = []
    for name, body in blocks("sh"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words.pop(0)  # a variable before the command
            if words and words[0].removeprefix(".venv/bin/") == "smallvit":
                found.append((name, shlex.join(words[1:])))
    return found


def links() -> list[tuple[Path, str]]:
    """Return every relative link outside code, with the page it is on."""
    found = []
    for page in PAGES:
        prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
        targets = [match["target"] for match in LINK.finditer(prose)]
        found += [(page, target) for target in targets if not re.match(r"\w+:", target)]
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as mkdocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[\s]+", "-", heading) for heading in plain}


def ids(pairs: list[tuple[str, str]]) -> list[str]:
    return [f"{name} {body.splitlines()[0][:60]}" for name, body in pairs]


def test_pages_have_code_commands_and_links():
    assert len(PAGES) > 8
    assert len(blocks("python", marked=True)) >= 2
    assert len(commands()) > 20
    assert len(links()) > 20


@pytest.mark.parametrize(("name", "body"), blocks("python"), ids=ids(blocks("python")))
def test_python_compiles(name, body):
    compile(body, name, "exec")


MARKED = blocks("python", marked=True)


@pytest.mark.parametrize(("name", "body"), MARKED, ids=ids(MARKED))
def test_marked_python_runs(name, body, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("SMALLVIT_RUNS_DIR", "SMALLVIT_CACHE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.setenv("SMALLVIT_OFFLINE", "1")
    exec(compile(body, name, "exec"), {"__name__": "page"})


@pytest.mark.parametrize(("name", "line"), commands(), ids=ids(commands()))
def test_command_parses(name, line):
    function, _, _ = create_app().parse_args(
        shlex.split(line), exit_on_error=False, print_error=False
    )[:3]
    module = function.__module__
    assert module.startswith("smallvit.cli."), f"{name}: {line!r} is no command, got {module}"


def test_an_unknown_option_would_be_noticed():
    from cyclopts import CycloptsError

    with pytest.raises(CycloptsError, match="no-such-option"):
        create_app().parse_args(
            ["pretrain", "--no-such-option", "1"], exit_on_error=False, print_error=False
        )


@pytest.mark.parametrize(
    ("page", "target"), links(), ids=[f"{page.name} {target}" for page, target in links()]
)
def test_link_leads_to_a_file(page, target):
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if file in WRITTEN_LATER and not file.exists():
        pytest.skip("that page is not written yet")
    assert file.exists(), f"{page.relative_to(ROOT)} links to {target}"
    if anchor and file.suffix == ".md":
        assert anchor in anchors(file)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_tests_that_a_page_names_exist(page):
    for path, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / path).is_file(), f"{page.name} names {path}"
        assert f"def {test}" in (ROOT / path).read_text(), f"{page.name} names {path}::{test}"
