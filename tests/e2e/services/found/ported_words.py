"""Found by tests/e2e/services/ported.py through its own sys.path."""

GREETING = "hello"
