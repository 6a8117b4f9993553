"""policy-split plot: a run's curves as a picture."""

import argparse

from policy_split.report.plot import plot_run


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="policy-split plot", description="Draw a run's curves into curves.png.")
    parser.add_argument("run", help="Folder of the run: the output_dir of its training.")
    print(f"curves: {plot_run(parser.parse_args(arguments).run).absolute()}")
    return 0
