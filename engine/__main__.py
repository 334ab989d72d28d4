"""The ``engine`` command, also as ``python -m engine``.

Apart from :mod:`engine.cli` because that takes a tenth of a second to import, and a Ctrl-C then is no reason for
a traceback of ours.
"""

import sys


def main() -> None:
    """Run one command and exit with its code."""
    try:
        from engine.cli import main as command
    except KeyboardInterrupt:
        sys.exit(1)  # ExitCode.FAILED, as later on; nothing more is imported
    command()


if __name__ == "__main__":
    main()
