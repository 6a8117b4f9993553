"""What tests with a real vLLM share; where it is not installed they are skipped."""

import os
import warnings

import pytest

# its memory is a share of the machine's, and two engines may stand side by side
SETTINGS = {"rollout_engine": "vllm", "vllm_gpu_memory_utilization": 0.1}
QUIET = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def pytest_collection_modifyitems(items):
    for item in items:
        if "vllm" in item.path.parts or item.path.parent.name == "vllm":
            for mark in QUIET:
                item.add_marker(mark)


@pytest.fixture(scope="session", autouse=True)
def vllm():
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
