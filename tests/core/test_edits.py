"""Which stages are replaced for files that are edited, and when: changes and the time in, edits out."""

from __future__ import annotations

import pytest

from engine.core.edits import SETTLE_S, Edits

LATER = SETTLE_S * 1.01


@pytest.fixture
def edits() -> Edits:
    made = Edits("stages.toml")
    made.imported("read", ["service.py", "words.py"])
    made.imported("write", ["service.py", "model/net.py"])
    return made


@pytest.mark.parametrize(
    ("changed", "stages", "settings"),
    [
        (["words.py"], {"read"}, False),
        (["model/net.py"], {"write"}, False),
        (["service.py"], {"read", "write"}, False),
        (["model/net.py", "words.py"], {"read", "write"}, False),
        (["stages.toml"], set(), True),
        (["stages.toml", "words.py", "notes.py"], {"read"}, True),
    ],
)
def test_a_stage_is_concerned_by_what_its_workers_have_imported(
    edits: Edits, changed: list[str], stages: set[str], settings: bool
) -> None:
    edits.changed(changed, 1.0)
    edit = edits.take(1.0 + LATER)
    assert edit is not None
    assert (edit.stages, edit.settings) == (stages, settings)
    assert edit.files == tuple(sorted(changed))


def test_what_nobody_has_imported_concerns_nobody(edits: Edits) -> None:
    edits.changed(["test_service.py"], 1.0)
    assert edits.take(9.0) is None
    edits.changed(["words.py"], 10.0)
    edit = edits.take(11.0)
    assert edit is not None
    assert edit.files == ("words.py",), "it is forgotten"


def test_edits_in_quick_succession_are_one(edits: Edits) -> None:
    for step in range(5):
        at = 1.0 + step * SETTLE_S * 0.9
        edits.changed(["words.py" if step % 2 else "model/net.py"], at)
        assert edits.take(at + SETTLE_S * 0.8) is None
    edit = edits.take(at + LATER)
    assert edit is not None
    assert edit.stages == {"read", "write"}
    assert edits.take(at + 9.0) is None


def test_what_changes_meanwhile_is_taken_afterwards(edits: Edits) -> None:
    edits.changed(["words.py"], 1.0)
    assert edits.take(2.0) is not None
    edits.changed(["words.py"], 3.0)
    edits.changed(["model/net.py"], 4.0)
    assert edits.take(9.0) is None
    edits.over(served=True)
    edit = edits.take(9.1)
    assert edit is not None
    assert edit.stages == {"read", "write"}


def test_what_could_not_be_served_is_tried_again_with_the_next_change_whichever_it_is(edits: Edits) -> None:
    edits.changed(["words.py"], 1.0)
    assert edits.take(2.0) is not None
    edits.over(served=False)
    assert edits.take(9.0) is None, "nothing has changed"
    edits.changed(["a_module_that_was_missing.py"], 10.0)
    edit = edits.take(11.0)
    assert edit is not None
    assert edit.stages == {"read"}
    edits.over(served=True)
    edits.changed(["a_module_that_was_missing.py"], 12.0)
    assert edits.take(13.0) is None


def test_where_nothing_is_served_any_change_is_worth_a_try() -> None:
    edits = Edits("stages.toml")
    edits.fail()
    edits.changed(["new.py"], 1.0)
    assert edits.take(2.0) is not None


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["a.py"], "a.py changed"),
        (["b.py", "a.py"], "a.py, b.py changed"),
        (list("dcba"), "a, b, c and 1 more changed"),
    ],
)
def test_a_line_names_what_has_changed(files: list[str], said: str) -> None:
    edits = Edits("stages.toml")
    edits.imported("one", files)
    edits.changed(files, 1.0)
    assert str(edits.take(2.0)) == said
