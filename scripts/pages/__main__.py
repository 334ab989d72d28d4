"""``scripts/docs write``: all of the pages that are made of the source, anew."""

from __future__ import annotations

from pages import metrics, worker

for made in (worker, metrics):
    made.PAGE.write_text(made.page(), encoding="utf-8")
