"""Where reward functions come from: files, modules, tasks of reasoning-gym; how worker processes find them again."""

import ast
import atexit
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from policy_split.data.reasoning_gym import PREFIX, ReasoningGymReward
from policy_split.words.questions import is_words

from .words import words_reward

REWARD_HELP = "module:function, file.py:function, reasoning-gym:TASK or words?reference=MODEL; may be repeated."
RewardFunction = Callable[..., Any]  # -> a list of numbers or None, or a coroutine that returns one

# What a process that has been started anew imports by the name of a reward file, to unpickle what is of it.
STUB = """import importlib.util, sys
spec = importlib.util.spec_from_file_location(__name__, {path!r})
module = importlib.util.module_from_spec(spec)
sys.modules[__name__] = module
spec.loader.exec_module(module)
"""


class _Loaded(NamedTuple):
    version: tuple[int, int]  # of the file
    module: ModuleType


_loaded: dict[str, _Loaded] = {}  # by the name of the module
_stubs: list[Path] = []  # their folder, once there is one


def load_reward(spec: str) -> RewardFunction:
    """The function of "package.module:function", "path/to/file.py:function", "reasoning-gym:task" or
    "words?reference=MODEL".

    A file is a module under a name of its own, which processes that it starts can import; modules beside it are found,
    and beside the working directory those of "module:function". Raises ValueError for another form or a module without
    it, FileNotFoundError and ModuleNotFoundError for what is not there, TypeError if it cannot be called. What the
    module itself raises on import is passed on.
    """
    if spec.startswith(PREFIX):
        return ReasoningGymReward(spec)
    if is_words(spec):
        return words_reward(spec)
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise ValueError(f"reward {spec!r} must be 'package.module:function' or 'path/to/file.py:function'")
    module = _load_file(Path(source), spec) if source.endswith(".py") else _load_module(source, spec)
    function: RewardFunction | None = getattr(module, name, None)
    if function is None:
        there = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "none"
        raise ValueError(f"reward {spec!r}: {source} has no {name!r}; its functions are {there}")
    if not callable(function):
        raise TypeError(f"reward {spec!r}: {name} is a {type(function).__name__}, not a function")
    return function


def _load_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"reward {spec!r}: there is no file {path}")
    path = path.resolve()  # the working directory may change
    digest = hashlib.blake2b(str(path).encode(errors="surrogateescape"), digest_size=4).hexdigest()
    name = f"policy_split_reward_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}_{digest}"
    version = (path.stat().st_mtime_ns, path.stat().st_size)
    known = _loaded.get(name)
    if known is not None and known.version == version and sys.modules.get(name) is known.module:
        return known.module
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise ImportError(f"reward {spec!r}: {path} cannot be imported")
    module = importlib.util.module_from_spec(module_spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look there for the module of a class
    try:
        _check_names_beside(path, spec)
        with _importing_from(path.parent):
            module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    _write_stub(name, path)
    _loaded[name] = _Loaded(version, module)
    return module


def _check_names_beside(path: Path, spec: str) -> None:
    """ValueError if the file imports a module beside it whose name another one has taken already."""
    for name in _imported_names(path):
        beside = (path.with_name(f"{name}.py"), path.with_name(name) / "__init__.py")
        loaded = getattr(sys.modules.get(name), "__file__", None)
        own = [there for there in beside if there.is_file() and there != path]
        if own and loaded is not None and Path(loaded).resolve() not in own:
            raise ValueError(
                f"reward {spec!r}: its module {own[0]} cannot be imported as {name!r}, which is {loaded} in this "
                f"process; give it another name"
            )


def _imported_names(path: Path) -> set[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # which is said when it is run
        return set()
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level and node.module
    ]
    return {name.partition(".")[0] for name in names}


def _load_module(name: str, spec: str) -> Any:
    try:
        with _importing_from(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModuleNotFoundError(f"reward {spec!r}: there is no module {error.name!r}", name=error.name) from error
        raise


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """The folder first on the path, as for a script in it; afterwards last, so that it hides nothing of others."""
    importlib.invalidate_caches()  # it may be younger than the last look
    there = str(folder)
    was_there = there in sys.path
    sys.path.insert(0, there)
    try:
        yield
    finally:
        sys.path.remove(there)
        if not was_there:
            sys.path.append(there)


def _write_stub(name: str, path: Path) -> None:
    """A module of that name on the path, for processes that are not forks: they are given the path, not our modules."""
    if not _stubs:
        folder = Path(tempfile.mkdtemp(prefix="policy-split-rewards-"))
        _stubs.append(folder)
        atexit.register(_remove_stubs, folder, os.getpid())
        sys.path.append(str(folder))
    (_stubs[0] / f"{name}.py").write_text(STUB.format(path=str(path)), encoding="utf-8")


def _remove_stubs(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of it
        shutil.rmtree(folder, ignore_errors=True)
