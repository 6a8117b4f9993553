"""Settings in a YAML file, such as a run's own config.yaml: names and types are checked before anything starts."""

import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from policy_split.config import PolicySplitConfig

# what the command line has beside the settings; a run whose model was an object has no name for it
SOURCES: dict[str, Any] = {
    "model": str | None,
    "dataset": str | None,
    "eval_dataset": str | None,
    "reward": str | list[str] | None,
    "size": str | None,
}
WORDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false", dict: "names with values"}


def read_settings_file(path: str | Path, *, strict: bool = True) -> dict[str, Any]:
    """The file's settings by name, of the types that they have in PolicySplitConfig.

    Raises FileNotFoundError, and ValueError in one line for what is no YAML, for a name that stands twice or is
    unknown (with the one that is nearest to it), and for a value of another type; not strict: unknown names, which a
    run of another version may have kept, are left aside.
    """
    if not Path(path).is_file():
        inside = Path(path) / "config.yaml"
        there = f"a folder; give {inside}" if inside.is_file() else "there is no such file"
        raise FileNotFoundError(f"--config {path}: {there}")
    try:
        read = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if read is None:
        return {}
    if not isinstance(read, dict):
        raise ValueError(f"{path}: expected settings by name, got a {type(read).__name__}")
    known = typing.get_type_hints(PolicySplitConfig) | SOURCES
    unknown = [name for name in read if name not in known]
    if unknown and strict:
        raise ValueError(f"{path}: {'; '.join(_unknown(name, list(known)) for name in unknown)}")
    return {name: _typed(f"{path}: {name}", value, known[name]) for name, value in read.items() if name in known}


def _unknown(name: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name).replace("-", "_"), known, 1)
    meant = f"; did you mean {near[0]}?" if near else "; policy-split train --help lists them"
    return f"there is no setting {name!r}{meant}"


def _typed(where: str, value: Any, hint: Any) -> Any:
    allowed = _alternatives(hint)
    for each in allowed:
        if _fits(value, each):
            return float(value) if each is float else value
    expected = ", or ".join("nothing" if each is type(None) else _words(each) for each in allowed)
    raise ValueError(f"{where}={value!r} must be {expected}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        return isinstance(value, list) and all(_fits(part, inner) for part in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is int)


def _words(kind: Any) -> str:
    if typing.get_origin(kind) is list:
        return f"a list of {'numbers' if typing.get_args(kind) == (float,) else 'texts'}"
    return WORDS[typing.get_origin(kind) or kind]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML's numbers as people write them (1e-6), and no name twice, of which PyYAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if isinstance(name, str) and name in seen:
                raise yaml.YAMLError(f"{name} stands twice, the second time in line {key.start_mark.line + 1}")
            seen.add(name if isinstance(name, str) else id(key))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
