"""The ``engine`` command, also as ``python -m engine``.

Apart from :mod:`engine.cli` because that takes a tenth of a second to import, and a Ctrl-C then is to end it: by the
system's own action. Python's would be an exception between any two lines, at best a traceback of ours, and at worst
lost: where it strikes in a callback of a weak reference, of which an import has many, it is printed and forgotten.
"""

import signal


def main() -> None:
    """Run one command and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored, as behind nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command takes over its signals
    from engine.cli import main as command

    command()


if __name__ == "__main__":
    main()
