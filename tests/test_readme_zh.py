"""README.zh.md says what README.md says: the same sections, commands, pictures and tables in the same order."""

from __future__ import annotations

import re

import pytest

from tests.conftest import PROJECT

BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def read(name: str) -> tuple[str, list[str]]:
    """Return a README without its code blocks, and the blocks."""
    text = (PROJECT / name).read_text(encoding="utf-8")
    return BLOCK.sub("", text), BLOCK.findall(text)


@pytest.fixture(scope="module")
def both():
    return read("README.md"), read("README.zh.md")


def test_headings_stand_in_step(both):
    levels = [[len(found) for found in re.findall(r"^(#+) ", text, re.MULTILINE)] for text, _ in both]
    assert levels[0] == levels[1] and len(levels[0]) > 8
    for title in re.findall(r"^##+ (.+)", both[1][0], re.MULTILINE):
        assert re.search("[\u4e00-\u9fff]", title), f"{title} is not in Chinese"


def test_commands_are_the_same_to_the_letter(both):
    assert both[0][1] == both[1][1] and len(both[0][1]) >= 10


def test_inline_commands_links_and_pictures_are_the_same(both):
    def found(text: str) -> list[list[str]]:
        commands = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
        links = re.findall(r"\]\(([^)]+)\)", text)
        return [sorted(code for code in commands if "=" in code or ".py" in code), sorted(set(links))]

    (english, links), (chinese, other_links) = (found(text) for text, _ in both)
    assert chinese == english
    assert set(links) - {"README.zh.md"} == set(other_links) - {"README.md"}


def test_tables_have_the_same_rows_and_figures(both):
    rows = [[line for line in text.splitlines() if line.startswith("|")] for text, _ in both]
    assert [line.count("|") for line in rows[0]] == [line.count("|") for line in rows[1]]
    for english, chinese in zip(*rows, strict=True):
        assert re.findall(r"\d+\.\d+", english) == re.findall(r"\d+\.\d+", chinese), chinese


def test_each_leads_to_the_other(both):
    assert "(README.zh.md)" in both[0][0].splitlines()[0] and "(README.md)" in both[1][0].splitlines()[0]
