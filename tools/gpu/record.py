"""The file of results, rewritten after each change, so that an interruption loses nothing."""

import json
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

FORMAT = 1
DONE, FAILED, STOPPED = "done", "failed", "stopped"
# Properties that all runs of a record must share.
_SAME: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "size (--tiny)": lambda run: run.get("tiny"),
    "device": lambda run: (
        run.get("device"),
        [gpu.partition(",")[0] for gpu in run.get("gpus", ())],
    ),
    "folder (--packed)": lambda run: run.get("packed"),
}
EMPTY: dict[str, Any] = {"format": FORMAT, "runs": [], "items": {}}


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a record.

    Raises:
        ValueError: If the file is not a record, or has another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a record of tools/measure_gpu.py, format {FORMAT}.")
    return content


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a record atomically."""
    replace(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a text atomically."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def plain(content: Any) -> Any:
    """Returns a copy of JSON values, with None for NaN and infinite numbers."""
    return json.loads(json.dumps(content), parse_constant=lambda _: None)


class Record:
    """A record to which runs add results; finished items of earlier runs are kept.

    Attributes:
        content: "runs" has the facts of each run. "items" has, by name, "status", "seconds",
            "limit", "run" (its index), "result" and, unless the item is done, "error".
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Reads the results of earlier runs, if the file exists."""
        self._path = path
        self.content = read(path) if path.exists() else plain(EMPTY)

    def begin(self, facts: dict[str, Any], anew: Collection[str] = ()) -> None:
        """Adds a run, and removes the results of items that it measures again.

        Raises:
            ValueError: If earlier runs have another size, device or folder, because one page shows
                only one.
        """
        for before in self.content["runs"][-1:]:
            differing = [name for name, read in _SAME.items() if read(before) != read(facts)]
            if differing:
                raise ValueError(
                    f"{self._path} is of another {' and '.join(differing)}; name another --out."
                )
        self.content["runs"].append(facts)
        for name in anew:
            self.content["items"].pop(name, None)
        self._write()

    def end(self, how: str) -> None:
        """Records how the run ended."""
        self.content["runs"][-1]["ended"] = how
        self._write()

    def is_done(self, name: str) -> bool:
        """Returns whether an item is finished."""
        return self.content["items"].get(name, {}).get("status") == DONE

    def keep(self, name: str, **entry: Any) -> None:
        """Writes the entry of an item."""
        self.content["items"][name] = {"run": len(self.content["runs"]) - 1, **entry}
        self._write()

    def _write(self) -> None:
        write(self._path, self.content)
