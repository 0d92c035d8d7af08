"""The file of what was measured, written anew after each change, so that a cut loses nothing."""

import json
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

FORMAT = 1
DONE, FAILED, STOPPED = "done", "failed", "stopped"
# What all runs of a record have in common.
_SAME: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "size (--tiny)": lambda run: run.get("tiny"),
    "device": lambda run: (
        run.get("device"),
        [one.partition(",")[0] for one in run.get("gpus", ())],
    ),
    "folder (--packed)": lambda run: run.get("packed"),
}
EMPTY: dict[str, Any] = {"format": FORMAT, "runs": [], "items": {}}


def read(path: pathlib.Path) -> dict[str, Any]:
    """What a file holds.

    Raises:
        ValueError: If it is no record, or of another version of this tool.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a record of tools/measure_gpu.py, format {FORMAT}.")
    return content


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a record, whole or not at all."""
    replace(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a text, whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def plain(content: Any) -> Any:
    """The same JSON values, with None for numbers that JSON does not have."""
    return json.loads(json.dumps(content), parse_constant=lambda _: None)


class Record:
    """A record that grows; items of earlier runs that are done stay.

    Attributes:
        content: "runs", what each start was; "items", by name: "status", "seconds", "limit",
            "run" (its index), "result" and, unless it is done, "error".
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Reads what earlier runs have left in a file, if there is one."""
        self._path = path
        self.content = read(path) if path.exists() else plain(EMPTY)

    def begin(self, facts: dict[str, Any], anew: Collection[str] = ()) -> None:
        """Adds a run, which measures some items anew.

        Raises:
            ValueError: If the runs before are of another device or folder: one page is of one.
        """
        for before in self.content["runs"][-1:]:
            differing = [of for of, what in _SAME.items() if what(before) != what(facts)]
            if differing:
                raise ValueError(
                    f"{self._path} is of another {' and '.join(differing)}; name another --out."
                )
        self.content["runs"].append(facts)
        for name in anew:
            self.content["items"].pop(name, None)
        self._write()

    def end(self, how: str) -> None:
        """Says how the run has ended."""
        self.content["runs"][-1]["ended"] = how
        self._write()

    def is_done(self, name: str) -> bool:
        """Whether an item needs no other run."""
        return self.content["items"].get(name, {}).get("status") == DONE

    def keep(self, name: str, **entry: Any) -> None:
        """Writes what is known of an item."""
        self.content["items"][name] = {"run": len(self.content["runs"]) - 1, **entry}
        self._write()

    def _write(self) -> None:
        write(self._path, self.content)
