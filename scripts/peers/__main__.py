"""Fetches the peers' tests, runs them on our functions and prints a table; a difference that is not listed fails.

    python -m scripts.peers [liger-kernel ...]

What is fetched lies in build/peers. A listed difference has to be one: where such a case passes, the list is wrong.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import torch

from .suites import SUITES, Suite

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "peers"


def fetch(suite: Suite) -> Path:
    folder = FOLDER / suite.folder
    if not folder.is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = ["download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", FOLDER]
        subprocess.run(
            [sys.executable, "-m", "pip", *command, f"{suite.package}=={suite.version}"], check=True, env=os.environ
        )
        with tarfile.open(FOLDER / f"{suite.folder}.tar.gz") as archive:
            archive.extractall(FOLDER, filter="data")
    return folder


def run(suite: Suite, arguments: list[str]) -> dict:
    folder = fetch(suite)
    outcomes = FOLDER / f"{suite.package}.json"
    outcomes.unlink(missing_ok=True)
    paths = [str(ROOT), str(ROOT / "kernels"), *(str(folder / path) for path in suite.paths)]
    environment = {"PYTHONPATH": ":".join(paths), "PEER": suite.package, "PEER_OUTCOMES": str(outcomes)}
    if suite.gpu:  # what of theirs is compiled would be compiled for it
        environment["TORCHDYNAMO_DISABLE"] = "1"
    plugins = ["-p", "scripts.peers.substitute", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-c", os.devnull, "--rootdir", ".", *plugins]
    subprocess.run([*command, *suite.tests, *arguments], cwd=folder, env=os.environ | environment)
    return json.loads(outcomes.read_text())


def judged(suite: Suite, outcomes: dict[str, str]) -> tuple[collections.Counter, list[str]]:
    """How many cases differ for each reason, and what is not as the list has it."""
    differences, wrong = collections.Counter(), []
    for case, outcome in outcomes.items():
        reason = next((why for pattern, why in suite.differences.items() if re.search(pattern, case)), None)
        if outcome == "failed" and reason is not None:
            differences[reason] += 1
        elif outcome == "failed":
            wrong.append(f"{case} failed, which is no listed difference")
        elif outcome == "passed" and reason is not None:
            wrong.append(f"{case} passed, which is listed as a difference: {reason}")
    return differences, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=", ".join(SUITES))
    parser.add_argument("-k", help="only cases whose names match, as in pytest")
    given = parser.parse_args()
    if unknown := sorted(set(given.packages) - set(SUITES)):
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(SUITES)}")
    rows, wrong = [], []
    for name in given.packages or SUITES:
        suite = SUITES[name]
        result = run(suite, ["-k", given.k] if given.k else [])
        counts = collections.Counter(result["outcomes"].values())
        differences, faults = judged(suite, result["outcomes"])
        cases = counts["passed"] + counts["failed"]
        if cases == 0:
            faults.append(f"{name}: no case was run")
        wrong += faults
        texts = "; ".join(f"{count}: {why}" for why, count in differences.items()) or "none"
        rows.append((f"{name} {suite.version}", cases, counts["passed"], len(result["left_out"]), texts))
    print(f"\n{time.strftime('%Y-%m-%d')}, Python {sys.version.split()[0]}, torch {torch.__version__}, CPU")
    print("| suite | cases run | passed | left out | deliberate differences |\n| - | - | - | - | - |")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
