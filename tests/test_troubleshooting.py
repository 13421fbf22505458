"""The page of troubles: every key on it composes, every link leads somewhere, every linked message is one of ours."""

import re

import pytest

from scripts.settings import PROJECT, run_guarded, verify_overrides
from scripts.troubleshooting import ANCHORS, with_link

PAGE = (PROJECT / "docs" / "troubleshooting.md").read_text()
HEADINGS = re.findall(r"^## ([\w-]+)$", PAGE, flags=re.M)
SPANS = re.findall(r"`([^`]+)`", PAGE.replace("\n", " "))
SCRIPT = re.compile(r"python scripts/(\w+)\.py (.*)")
TYPED = [span for span in SPANS if re.match(r"[a-z_]+(\.[a-z_]+)*=\S", span) or SCRIPT.match(span)]
CONFIGS = ("train", "evaluate")


def test_there_is_an_entry_for_each_of_the_troubles():
    assert len(HEADINGS) == len(set(HEADINGS)) == 36 + 7
    assert len(TYPED) > 40


@pytest.mark.parametrize("text", TYPED)
def test_what_is_to_be_typed_composes(text):
    if found := SCRIPT.match(text):
        assert (PROJECT / "scripts" / f"{found[1]}.py").is_file()
        verify_overrides(found[1], [word for word in found[2].split() if "=" in word])
        return
    errors = []
    for name in CONFIGS:
        try:
            verify_overrides(name, text.split())
            return
        except ValueError as e:
            errors.append(str(e))
    pytest.fail("; ".join(errors))


@pytest.mark.parametrize(("words", "anchor"), ANCHORS.items())
def test_links_lead_to_entries_and_come_from_messages_of_ours(words, anchor):
    assert anchor in HEADINGS
    sources = "".join(
        re.sub(r'"\n\s+f?"', "", path.read_text())  # strings that go on in the next line
        for folder in ("data", "infer", "train", "scripts")
        for path in (PROJECT / folder).rglob("*.py")
        if path.name != "troubleshooting.py"
    )
    assert words in sources
    assert with_link(f"before {words} behind").endswith(f"\nsee docs/troubleshooting.md#{anchor}")


def test_a_user_sees_the_link(capsys):
    def fails():
        raise ValueError("run.dir=x holds a run; name another one")

    assert run_guarded(fails) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: run.dir=x holds a run; name another one",
        "see docs/troubleshooting.md#run-folder-in-use",
    ]
    assert with_link("nothing known") == "nothing known"
