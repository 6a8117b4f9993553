"""The plan of the house: imports point down, `kernels/` knows nothing above it, and each library has one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Floors from the ground up; a module imports only from floors below its own.
KERNELS = [
    {"reference_loss", "memory", "dtensor", "outside_graphs", "triton_launch", "triton_tiles", "triton_loss"},
    {"reference", "vector_loss", "triton_rows"},
    {"reference_divergence", "native_library", "triton_logits", "triton_pairs", "rows", "linear_products"},
    {"native", "native_divergence", "triton_divergence"},
    {"backends"},
    {"ops"},
    {"autograd"},
    {"vocab_parallel"},
    {"logprobs", "divergence", "linear_chunks"},
    {"linear_losses", "linear_autograd"},
    {"linear_arguments"},
    {"linear"},
]
PACKAGE = [
    {
        "extras",
        "batches",
        "modes",
        "expressions",
        "filtering",
        "loss_weights",
        "advantages",
        "baseline_losses",
        "state_files",
        "whole_folder",
        "time_limit",
        "stopping",
        "environment",
        "warm_start",
        "head_weight",
        "report_page",
        "report_runs",
        "isolated_server",
        "gym_worker",
        "evaluation_statistics",
        "sharding",
    },
    {"baselines", "isolated", "packing", "progress", "doctor"},
    {"algorithms", "gym_tasks"},
    {
        "comparison",
        "report_charts",
        "report_samples",
        "evaluation_tables",
        "config",
        "countdown",
        "plot",
        "checkpoints",
        "rewards",
        "math_reward",
        "loss_arguments",
        "fused_forward",
    },
    {"countdown_sizes", "loss", "data", "launch", "run_state", "regularizer", "lm_head", "report_training"},
    {"linear_loss", "models", "report_evaluation"},
    {"sampling", "report"},
    {"rollout"},
    {"metrics", "question_scores", "samples"},
    {"runlog"},
    {"evaluate", "baseline_step"},
    {"update"},
    {"trainer"},
    {"__init__"},
    {"countdown_job"},
    {"eval_command", "study"},
    {"cli"},
]
STUDY = [
    {"__init__", "statistics", "variants"},
    {"plan"},
    {"work"},
    {"runner"},
    {"results"},
    {"figures", "document"},
    {"command"},
]
INTEGRATIONS = [
    {"__init__", "interleaved", "trl_config", "trl_kernels", "verl_kernels"},
    {"trl", "verl_rows"},
    {"verl"},
]
ONLY = {
    "ctypes": {"native_library"},
    "triton": {path.stem for path in (ROOT / "kernels").glob("triton_*.py")},
    "argparse": {"cli", "command", "doctor"},
}


def modules(folder):
    return sorted((ROOT / folder).glob("*.py"))


def imported(path):
    """(package, module) of each import: ("", name) for one outside the project."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {("", alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            own = [node.module] if node.module else [alias.name for alias in node.names]
            package = path.parents[node.level - 1].name
            names |= {(package, name.split(".")[0]) for name in own}
        elif isinstance(node, ast.ImportFrom):
            names.add(("", node.module))
    return names


@pytest.mark.parametrize(
    ("folder", "floors"),
    [
        ("kernels", KERNELS),
        ("policy_split", PACKAGE),
        ("policy_split/study", STUDY),
        ("policy_split/integrations", INTEGRATIONS),
    ],
)
def test_imports_point_down(folder, floors):
    level = {module: k for k, floor in enumerate(floors) for module in floor}
    for path in modules(folder):
        assert path.stem in level, f"{folder}/{path.name} is on no floor"
        for package, name in imported(path):
            if package == Path(folder).name:
                assert level[name] < level[path.stem], f"{folder}/{path.name} imports {name}, which is not below it"


def test_kernels_know_nothing_above_them():
    for path in modules("kernels"):
        assert not [name for _, name in imported(path) if name.startswith("policy_split") and "kernels" not in name]


def test_drop_in_stands_on_the_kernels_alone():
    for path in modules("policy_split/drop_in"):
        assert {name.split(".")[0] for _, name in imported(path)} <= {"torch", "policy_split_kernels"}


def test_only_integrations_know_the_frameworks():
    """And nothing but the command line and its kin stands above them."""
    for path in [*modules("kernels"), *modules("policy_split"), *modules("policy_split/study")]:
        names = {name.split(".")[0] for package, name in imported(path) if not package}
        assert not names & {"trl", "verl"}, f"{path.name} imports a framework"
        assert "integrations" not in {name for _, name in imported(path)} or path.stem == "__init__"


def test_each_library_has_one_door():
    for path in modules("kernels") + modules("policy_split") + modules("policy_split/study"):
        for library, allowed in ONLY.items():
            names = {name.split(".")[0] for package, name in imported(path) if not package}
            assert library not in names or path.stem in allowed, f"{path.name} imports {library}"


def test_kernels_is_not_a_package_of_that_name():
    """PyPI's `kernels` is Hugging Face's, and transformers looks for it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
