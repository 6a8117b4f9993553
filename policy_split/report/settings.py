"""Settings and versions of a report: what differs between the runs, then all of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .runs import Run
from .tables import Table


@dataclass
class Settings:
    """`different` is None for a single run; a table of no rows says that nothing differs."""

    missing: list[str]  # runs that have none
    different: Table | None
    whole: dict[str, Table]


def read_settings(runs: Sequence[Run], kind: str) -> Settings:
    """kind: "settings" or "environment" of the runs."""
    flat = {run.name: _flat(getattr(run, kind)) for run in runs}
    full = {name: settings for name, settings in flat.items() if settings}
    names = dict.fromkeys(name for settings in full.values() for name in settings)
    rows = [
        [name, *(settings.get(name, "–") for settings in full.values())]
        for name in names
        if len({settings.get(name) for settings in full.values()}) > 1
    ]
    return Settings(
        [name for name, settings in flat.items() if not settings],
        Table(["", *full], rows, words=True) if len(full) > 1 else None,
        {name: Table(["name", "value"], list(settings.items()), words=True) for name, settings in full.items()},
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} as {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat
