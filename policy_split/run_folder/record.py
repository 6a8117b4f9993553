"""What a run was started with, kept in its folder: config.yaml, those before it, fingerprint.json, environment.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from policy_split.config import PolicySplitConfig
from policy_split.storage.environment import environment
from policy_split.storage.whole_folder import replace_text

from .output_dir import CONFIG, ENVIRONMENT, FINGERPRINT


@dataclass(frozen=True)
class Record:
    """settings: what config.yaml says; fingerprint: as `fingerprint.fingerprint` makes it."""

    settings: Mapping[str, Any]
    fingerprint: Mapping[str, Any]

    def write(self, folder: Path, step: int) -> None:
        """Of a run that goes on with `step`; settings that differ from those before stand beside them, not over them.

        config.yaml is what runs now; its first line then says from which step on, and which of config-1.yaml,
        config-2.yaml ... holds what ran before.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path, before = folder / CONFIG, read_settings(folder)
        text = as_yaml(self.settings)
        if before is None:
            replace_text(path, text)
        elif before != yaml.safe_load(text):
            earlier = folder / f"config-{1 + len(list(folder.glob('config-*.yaml')))}.yaml"
            replace_text(earlier, path.read_text(encoding="utf-8"))
            replace_text(path, f"# from step {step} on; what ran before is in {earlier.name}\n{text}")
        replace_text(folder / FINGERPRINT, json.dumps(self.fingerprint, indent=1, ensure_ascii=False) + "\n")
        replace_text(folder / ENVIRONMENT, json.dumps(environment(), indent=1) + "\n")


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Texts with line ends that only YAML and Unicode know are quoted: unquoted they come back as other texts."""

    def represent_str(self, data: str) -> Any:
        quoted = set(data) & set("\x85\u2028\u2029\ufeff")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if quoted else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def as_yaml(settings: Mapping[str, Any]) -> str:
    """For people, and read again without a loss."""
    text: str = yaml.dump(dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def described(config: PolicySplitConfig, sources: Mapping[str, Any]) -> dict[str, Any]:
    """What config.yaml says: the names of model, questions and rewards, None for objects, and the settings.

    To overwrite a folder is what one start did, no setting: the file can be given back and removes nothing.
    """
    return {**sources, **asdict(config), "overwrite_output_dir": False}


def source_name(given: Any) -> str | list[str] | None:
    """The name under which a model, questions or rewards are found again from anywhere, None for an object.

    PATH, PATH:SPLIT and FILE.py:FUNCTION become absolute where there is such a path.
    """
    if isinstance(given, (list, tuple)):
        names = [source_name(each) for each in given]
        return [name for name in names if isinstance(name, str)] if names and None not in names else None
    if not isinstance(given, (str, Path)):
        return None
    text = str(given)
    start, colon, end = text.rpartition(":")
    if Path(text).exists():
        return str(Path(text).absolute())
    return f"{Path(start).absolute()}{colon}{end}" if start and Path(start).exists() else text


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What config.yaml says, None if there is none; ValueError in one line if it cannot be read."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected settings by name, got {type(settings).__name__}")
    return settings


def read_fingerprint(folder: Path) -> dict[str, Any] | None:
    path = folder / FINGERPRINT
    if not path.is_file():
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path}: expected an object, got {type(read).__name__}")
    return read
