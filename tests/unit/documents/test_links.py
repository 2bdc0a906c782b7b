"""What the documents name and link to exists."""

import re

from tests.documents import ALL, ROOT, Document


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    links = [
        (one, link)
        for one in ALL
        for link in re.findall(r"\]\(([^)\s]+)\)", one.text)
        if not link.startswith("https://")
    ]
    assert len(links) > 10
    assert [f"{one.path}: {link}" for one, link in links if not leads(one, link)] == []


def leads(document: Document, link: str) -> bool:
    """Tell whether a link of a document has an end."""
    file, _, anchor = link.partition("#")
    target = document.path.parent / file if file else document.path
    return target.exists() and (not anchor or anchor in Document(target).anchors())


def test_a_link_that_leads_nowhere_is_seen() -> None:
    readme = Document(ROOT / "README.md")
    assert leads(readme, "conf/README.md#settings")
    assert not leads(readme, "conf/README.md#nothing")
    assert not leads(readme, "conf/NOTHING.md")


def test_every_file_that_is_named_exists() -> None:
    text = "\n".join(one.text for one in ALL)
    files = re.findall(r"`((?:conf|systemd|tests|greeterd|\.ci)/[\w./@-]*)`", text)
    assert len(files) > 10
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_document_is_on_the_map() -> None:
    readme, *others = ALL
    linked = re.findall(r"\]\((\S+?README\.md)\)", readme.section("Documents"))
    assert {ROOT / link for link in linked} == {one.path for one in others}
    folders = [ROOT / name for name in ("conf", "greeterd", "systemd", "tests")]
    there = {path for folder in folders for path in folder.rglob("*.md")}
    assert {one.path for one in others} == there


def test_the_first_document_is_short() -> None:
    assert len(ALL[0].text.splitlines()) < 200


def test_tests_are_named_in_the_document_about_tests_only() -> None:
    *others, tests = ALL
    assert tests.path.parent.name == "tests"
    assert [one.path for one in others if re.search(r"\btest_\w+", one.text)] == []
