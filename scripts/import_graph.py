"""Draws who imports whom, folder by folder, into docs/assets/imports.svg: `make import-graph`.

An arrow that a chain of others implies is left out: what can be reached with it can be reached without it.
"""

from graphlib import TopologicalSorter
from pathlib import Path

import grimp

from scripts.site.diagrams import INK, svg

PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "imports.svg"
ABOVE, BELOW = "policy_split", "policy_split_kernels"
GREY = "#767b85"  # to be read on a white page and on a dark one
STYLE = """
  nodesep=0.2; ranksep=0.35; edge [arrowsize=0.6, penwidth=0.8];
  node [shape=box, style=rounded, fontsize=14, height=0.3, margin="0.1,0.04"];
"""
Imports = dict[str, set[str]]


def folder_imports() -> Imports:
    """Of each folder, and each module beside folders: what it imports. The packages' own front doors are left out.

    To `policy_split` the kernels are one folder; inside them their folders and modules are told apart.
    """
    graph = grimp.build_graph(ABOVE, BELOW)
    found: Imports = {}
    for module in graph.modules - {ABOVE, BELOW}:
        importer = _folder(module)
        imported = {_folder(name) for name in graph.find_modules_directly_imported_by(module)} - {importer, ABOVE}
        if importer.startswith(f"{ABOVE}."):
            imported = {BELOW if name.startswith(BELOW) else name for name in imported}
        found.setdefault(importer, set()).update(imported)
    return found


def _folder(module: str) -> str:
    return ".".join(module.split(".")[:2])


def reduced(imports: Imports) -> Imports:
    """Without what others imply; raises graphlib.CycleError where folders import each other in a circle."""
    reached: Imports = {}
    kept: Imports = {}
    for name in TopologicalSorter(imports).static_order():
        direct = imports.get(name, set())
        reached[name] = direct.union(*(reached[other] for other in direct))
        kept[name] = {other for other in direct if not any(other in reached[between] for between in direct)}
    return kept


def dot(imports: Imports) -> str:
    """The graph in graphviz's language: one box for each package."""
    lines = ["digraph imports {", STYLE, f'  "{BELOW}" [label="{BELOW}"];']
    for package in (ABOVE, BELOW):
        lines.append(f'  subgraph "cluster {package}" {{ label="{package}"; fontsize=15; style=rounded; color="{INK}";')
        inside = sorted(name for name in imports if name.startswith(f"{package}."))
        lines += [f'    "{name}" [label="{name.split(".")[1]}"];' for name in inside]
        lines.append("  }")
    lines += [f'  "{name}" -> "{other}";' for name in sorted(imports) for other in sorted(imports[name])]
    return "\n".join([*lines, "}\n"])


if __name__ == "__main__":
    PICTURE.write_text(svg(dot(reduced(folder_imports()))).replace("currentColor", GREY))
    print(PICTURE)
