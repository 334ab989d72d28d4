"""The reference page is what the schema says, and names every key."""

from __future__ import annotations

from engine.config.reference import PAGE, main, page
from engine.config.schema import SECTIONS, keys
from engine.exitcodes import ExitCode


def test_page_in_the_repository_is_up_to_date(monkeypatch):
    monkeypatch.setattr("sys.argv", ["reference", "--check"])
    assert main() == ExitCode.OK, "run python -m engine.config.reference"
    assert PAGE.read_text(encoding="utf-8") == page()


def test_a_stale_page_is_noticed_and_written_anew(monkeypatch, tmp_path, capsys):
    stale = tmp_path / "reference.md"
    stale.write_text("old")
    monkeypatch.setattr("engine.config.reference.PAGE", stale)
    monkeypatch.setattr("sys.argv", ["reference", "--check"])
    assert main() == ExitCode.FAILED
    assert "out of date" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["reference"])
    assert main() == ExitCode.OK
    assert stale.read_text(encoding="utf-8") == page()


def test_every_key_stands_in_a_table_with_its_documentation():
    text = page()
    for section, kind in SECTIONS.items():
        for name, key in keys(kind).items():
            assert f"| `{name}` | {key.doc.replace('|', chr(92) + '|')} |" in text, f"{section}.{name}"


def test_units_and_defaults_are_stated_as_one_writes_them():
    text = page()
    assert '`"10 MiB"`' in text
    assert "`3` s" in text
    assert "`--max-request-size` `ENGINE_MAX_REQUEST_SIZE`" in text
    assert "*required*" in text


def test_every_exit_code_is_explained():
    for code in ExitCode:
        assert f"| {code.value} | {code.name} | {code.meaning} |" in page()
