"""Statistics of a table of numbers. It knows nothing of compression: bodies arrive unpacked and leave packed."""

from __future__ import annotations

import statistics
from typing import Any

from engine import ValidationError, Worker


class Statistics(Worker):
    """``{"rows": [{"a": 1, "b": 2.5}, ...]}``: per column its mean, and every row's distance from it."""

    example = {"rows": [{"a": 1, "b": 2.5}, {"a": 3, "b": 3.5}]}

    def forward(self, data: Any) -> dict[str, Any]:
        try:
            rows = [{str(name): float(value) for name, value in row.items()} for row in data["rows"]]
            columns = {name: [row[name] for row in rows] for name in rows[0]}
        except (TypeError, KeyError, AttributeError, ValueError, IndexError) as error:
            raise ValidationError('expected {"rows": [...]}, objects of numbers with the same names') from error
        means = {name: statistics.fmean(values) for name, values in columns.items()}
        distances = [{name: round(row[name] - mean, 6) for name, mean in means.items()} for row in rows]
        return {"means": means, "distances": distances}
