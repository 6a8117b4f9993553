"""A folder that is there as a whole or not at all, and in which damage is noticed.

It is written under another name, sealed (every file on disk, and a manifest of sizes and SHA-256 sums), then renamed.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

MANIFEST = "manifest.json"
ASIDE = "unfinished-"  # how the names of folders begin that are being written or removed


def seal(folder: Path) -> None:
    """Write the manifest and force the folder's files to disk; nothing may be written into it afterwards."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest(path)}
        sync(path)
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def publish(folder: Path, target: Path) -> None:
    """Give a sealed folder its name, in place of one that may have it already."""
    if target.exists():
        remove(target)
    os.replace(folder, target)
    sync(target.parent)


def remove(folder: Path) -> None:
    """Remove a folder; killed on the way, it leaves what `sweep` removes and nothing that looks like the folder."""
    aside = folder.with_name(f"{ASIDE}{folder.name}-old")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    sync(folder.parent)
    shutil.rmtree(aside)


def sweep(parent: Path) -> None:
    """Remove what a killed process has left half-written or half-removed."""
    for path in parent.glob(f"{ASIDE}*"):
        shutil.rmtree(path, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, naming the file; None if every file is as it was written."""
    manifest = folder / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{folder / name} has {size} bytes instead of {expected['bytes']}"
            if digest(folder / name) != expected["sha256"]:
                return f"{folder / name} is not what was written: its SHA-256 sum differs"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{manifest} cannot be read"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    return None


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    os.replace(aside, path)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """The SHA-256 sum of a file."""
    sum_ = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            sum_.update(part)
    return sum_.hexdigest()
