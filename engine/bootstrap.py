"""How a child process of the supervisor begins: a script run by its path, so that no search path decides what it is.

``python -m engine.cli`` would look in the current folder first and in ``PYTHONPATH`` next, where a folder ``engine``
may well be somebody else's (``-P`` helps against the first from Python 3.11 on). A process that user code starts with
``multiprocessing`` runs this file again under another name before anything else, and so gets the same packages.
"""

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # the folder of this file: its modules are not to be found as top-level ones

import importlib.util
from importlib.machinery import PathFinder
from os.path import abspath, dirname


def _import_engine(root: str) -> None:
    """The package this file belongs to, under its name."""
    if "engine" in sys.modules:
        return
    spec = PathFinder.find_spec("engine", [root])
    assert spec is not None  # this file lies in it
    assert spec.loader is not None
    sys.modules["engine"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_root = dirname(dirname(abspath(__file__)))
_import_engine(_root)
if _root not in sys.path:
    sys.path.append(_root)  # run from its source tree without being installed: for processes that user code starts

if __name__ == "__main__":
    from engine.cli import main

    main()
