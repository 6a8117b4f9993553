"""The judge of `policy-split eval` on the command line: where it is, its model, its key in the environment."""

import argparse
import os

from policy_split.evaluation.chat_endpoint import ChatEndpoint
from policy_split.evaluation.judge import Judge

KEY = "JUDGE_API_KEY"


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--judge",
        metavar="URL",
        help=f"OpenAI-compatible endpoint that grades creativity, originality and imagery; its key in {KEY}.",
    )
    parser.add_argument("--judge-model", "--judge_model", metavar="NAME", help="The model of the endpoint.")
    parser.add_argument(
        "--judge-samples", "--judge_samples", type=int, default=4, help="Responses per question and mode to grade."
    )
    parser.add_argument("--judge-seconds", "--judge_seconds", type=float, default=60.0, help="For one answer.")


def chosen_judge(chosen: argparse.Namespace) -> Judge | None:
    """None where none is asked for; ValueError for what does not go together."""
    if chosen.judge is None:
        if chosen.judge_model is not None:
            raise ValueError(f"--judge-model {chosen.judge_model} needs --judge URL")
        return None
    if chosen.judge_model is None:
        raise ValueError(f"--judge {chosen.judge} needs --judge-model NAME")
    endpoint = ChatEndpoint(chosen.judge, chosen.judge_model, os.environ.get(KEY), chosen.judge_seconds)
    return Judge(endpoint, chosen.judge_samples)
