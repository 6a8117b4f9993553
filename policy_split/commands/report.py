"""policy-split report: one or several runs as one HTML file."""

import argparse

from policy_split.report.build import report


def run(arguments: list[str]) -> int:
    """`policy-split report RUN [RUN ...] [--output report.html] [--static]`; raises what `report` raises."""
    parser = argparse.ArgumentParser(prog="policy-split report", description="Write runs into one HTML file.")
    parser.add_argument("run", nargs="+", help="Folder of a run: the output_dir of its training.")
    parser.add_argument("--output", default="report.html", help="The file to write.")
    parser.add_argument(
        "--static", action="store_true", help="No script in the file: charts as SVG by matplotlib, none of 5 MB."
    )
    given = parser.parse_args(arguments)
    print(f"report: {report(given.run, given.output, static=given.static).absolute()}")
    return 0
