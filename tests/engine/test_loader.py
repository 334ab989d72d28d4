"""Finding the user's class: what is found where, and whose error is whose."""

from __future__ import annotations

import pickle
import sys
import traceback

import pytest

from engine.errors import StartError
from engine.loader import importing, load_class, stand_in

pytestmark = pytest.mark.usefixtures("imports_are_undone")


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_module_beside_the_file(tmp_path):
    write(tmp_path, "sl_service.py", "class Encode:\n    pass\n")
    found = load_class("sl_service:Encode", tmp_path)
    assert (found.__module__, found.__qualname__) == ("sl_service", "Encode")
    assert sys.path[0] == str(tmp_path)
    assert load_class("sl_service:Encode", tmp_path) is found
    assert sys.path.count(str(tmp_path)) == 1


def test_installed_module(tmp_path):
    assert load_class("json.decoder:JSONDecoder", tmp_path).__name__ == "JSONDecoder"


def test_nested_packages_and_nested_classes(tmp_path):
    write(tmp_path, "sl_pkg/__init__.py", "")
    write(tmp_path, "sl_pkg/sub/__init__.py", "")
    write(tmp_path, "sl_pkg/sub/mod.py", "class Outer:\n    class Inner:\n        pass\n")
    assert load_class("sl_pkg.sub.mod:Outer.Inner", tmp_path).__qualname__ == "Outer.Inner"


def test_a_module_may_import_what_lies_beside_it(tmp_path):
    write(tmp_path, "sl_helper.py", "BASE = dict\n")
    write(tmp_path, "sl_uses.py", "from sl_helper import BASE\nclass A(BASE):\n    pass\n")
    assert issubclass(load_class("sl_uses:A", tmp_path), dict)


def test_a_script_is_imported_under_its_own_name_so_that_its_guard_holds(tmp_path):
    text = "class A:\n    pass\nif __name__ == '__main__':\n    raise SystemExit('the guard did not hold')\n"
    path = write(tmp_path, "sl-server.py", text)
    found = load_class(f"{path}:A", tmp_path)
    assert found.__module__ == "sl_server"
    assert load_class("sl-server.py:A", tmp_path) is found
    assert type(pickle.loads(pickle.dumps(found()))) is found


def test_a_script_called_like_another_module_is_refused(tmp_path):
    path = write(tmp_path, "json.py", "class A:\n    pass\n")
    with pytest.raises(StartError, match=r'has the name of the module "json".*rename the script'):
        load_class(f"{path}:A", tmp_path)


def test_a_script_that_fails_is_not_left_half_imported(tmp_path):
    path = write(tmp_path, "sl_fails.py", "1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_class(f"{path}:A", tmp_path)
    assert "sl_fails" not in sys.modules
    path.write_text("class A:\n    pass\n\n\n")
    assert load_class(f"{path}:A", tmp_path).__name__ == "A"


def test_a_missing_module_names_where_it_was_looked_for_and_the_nearest_one(tmp_path):
    write(tmp_path, "sl_service.py", "")
    with pytest.raises(StartError) as caught:
        load_class("sl_servise:Encode", tmp_path)
    assert str(caught.value) == (
        f'module "sl_servise" not found, neither in {tmp_path} nor installed for {sys.executable}; '
        'did you mean "sl_service"?'
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sl_pkg.missing:A", 'module "sl_pkg.missing" not found'),
        ("sl_plain.sub:A", "is a module, not a package"),
        ("sl_missing.py:A", r"script .*sl_missing\.py not found"),
        ("sl_plain:Encod", r"sl_plain\.py has no Encod; did you mean Encode\?"),
        ("sl_plain:Zzz", "has no Zzz; its classes are Decode, Encode"),
        ("sl_plain:Encode.Zzz", "has no Encode.Zzz; its classes are none"),
        ("sl_plain:function", "function is no class but function"),
        ("sl_plain", 'expected "module:Class"'),
        (":A", 'expected "module:Class"'),
        ("sl_plain:", 'expected "module:Class"'),
    ],
)
def test_what_cannot_be_found_is_told_in_a_line(tmp_path, spec, message):
    write(tmp_path, "sl_pkg/__init__.py", "")
    write(tmp_path, "sl_plain.py", "class Encode: pass\nclass Decode: pass\ndef function(): pass\n")
    with pytest.raises(StartError, match=message) as caught:
        load_class(spec, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["import sl_no_such_dependency", "from json import no_such_name", "raise ImportError('mine')", "1 / 0"]
)
@pytest.mark.parametrize("file", ["sl_broken.py", "sl_parent/__init__.py"])
def test_the_modules_own_exception_passes_through_with_its_own_traceback(tmp_path, line, file):
    write(tmp_path, file, f"\n\n{line}\n")
    write(tmp_path, "sl_parent/sl_child.py", "class A: pass\n")
    spec = "sl_broken:A" if file == "sl_broken.py" else "sl_parent.sl_child:A"
    with pytest.raises((ImportError, ZeroDivisionError)) as caught:
        load_class(spec, tmp_path)
    last = [frame for frame in traceback.extract_tb(caught.value.__traceback__) if frame.filename.endswith(file)][-1]
    assert (last.lineno, last.line) == (3, line)


def test_a_script_is_imported_under_the_command_line_and_path_it_was_started_with(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["engine", "worker"])
    write(tmp_path, "lib/sl_found.py", "WORD = 'found'\n")
    write(tmp_path, "sl_script.py", "import sys, sl_found\nclass A:\n    seen = (sys.argv[1:], sl_found.WORD)\n")
    before = list(sys.path)
    stand_in((), ())
    assert (sys.argv, sys.path) == (["engine", "worker"], before)
    stand_in(("server.py", "--model", "m"), (*before[:1], str(tmp_path / "lib")))
    assert load_class("sl_script:A", tmp_path).seen == (["--model", "m"], "found")
    assert set(before) <= set(sys.path)


def test_a_module_knows_that_it_is_being_imported_by_the_loader(tmp_path):
    write(tmp_path, "sl_asks.py", "from engine.loader import importing\nclass A:\n    seen = importing()\n")
    assert importing() is None
    assert load_class("sl_asks:A", tmp_path).seen == "sl_asks:A"
    assert importing() is None
