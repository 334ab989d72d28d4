"""Puts this folder on the path: its tests share fakes.py, and one of its programs runs in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
