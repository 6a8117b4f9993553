"""The benchmarks run, and measure what they say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(name):
    specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


interleave, budget = load("interleave"), load("budget")


def test_every_candidate_runs_once_in_each_round_and_its_turn_rotates():
    calls = []
    seconds = interleave.interleaved(
        {name: lambda k, name=name: calls.append((k, name)) for name in "abc"}, rounds=3, warmup=1
    )
    assert [len(times) for times in seconds.values()] == [3, 3, 3]
    rounds = [[name for k, name in calls if k == turn] for turn in range(3)]
    assert rounds == [list("abc"), list("bca"), list("cab")]


def test_ratio_is_taken_round_by_round():
    """The machine was twice as slow in the second round: both candidates alike."""
    assert interleave.ratio({"slow": [2.0, 4.0, 2.0], "fast": [1.0, 2.0, 1.0]}, "slow", "fast") == pytest.approx(2.0)


def test_budget_refuses_what_will_not_fit_and_says_so():
    """Compilations cost the same at any size, rounds in proportion to it."""
    left = budget.Budget(100.0)
    assert left.refuses(10**12) == ""  # nothing is known before the first
    left.spent(nbytes=10, checking=30.0, timing=10.0)
    assert left.refuses(60) == ""
    assert left.refuses(80).startswith("110 s expected, ")
    assert left.refuses(80).endswith(" left of 100 s")


def test_everything_fits_where_there_is_no_gpu():
    assert budget.fits(10**15, "cpu") == ("", True)
    assert budget.head_fits(10**6, 10**5, 10**6, 4, "cpu") == ""


def gpu_benchmark(tmp_path, *options):
    """(file of the record, what was printed) of the command on the CPU."""
    output = tmp_path / "x.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--output", str(output), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout


PEERS = {
    # entropy off by a hundredth of a nat
    "trl/kernels.py": """
import torch
def selective_log_softmax_and_entropy(logits, index, temperature=1.0, row_mask=None):
    log_p = torch.log_softmax(logits.double() / temperature, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p.gather(-1, index[:, None])[:, 0].float(), (entropy + 0.01).float()

# an entropy without a gradient
class ChunkedLogProbFunction:
    def apply(hidden, weight, bias, index, *settings):
        logprobs, entropy = selective_log_softmax_and_entropy(hidden @ weight.t(), index)
        return logprobs, entropy.detach(), None, None, None
""",
    # right, and does less than the others: a bound
    "quack/cross_entropy.py": """
import torch
def cross_entropy_fwd(x, target, return_lse=False):
    return torch.nn.functional.cross_entropy(x.float(), target, reduction="none"), None
""",
    "quack/linear_cross_entropy.py": """
import torch
def chunked_linear_cross_entropy(x, weight, target, ignore_index, tuned):
    return torch.nn.functional.cross_entropy(x @ weight.t(), target, ignore_index=ignore_index)
""",
    # right, once the code for another GPU could not be imported
    "liger_kernel/ops/fused_linear_scaled_cross_entropy.py": """
import torch
class LigerFusedLinearScaledCrossEntropyFunction:
    def apply(*arguments):
        import a_library_that_nobody_has
class _FusedLinearPPOFallbackFunction:
    def apply(hidden, weight, target, temperature, ignored, return_entropy):
        log_p = torch.log_softmax(hidden @ weight.t() / temperature, -1)
        losses = torch.nn.functional.nll_loss(log_p, target, ignore_index=ignored, reduction="none")
        return losses, -(log_p.exp() * log_p).sum(-1)
""",
    # scores another token than the one it is given
    "liger_kernel/transformers/grpo_loss.py": """
import torch
def triton_grpo_loss(logits, old_logp, ref_logp, completion_ids, advantages, *, inplace, **settings):
    losses = -torch.log_softmax(logits.float(), -1)[:, :, 0] * advantages[:, None]
    return losses, None, None
""",
    # found, and it does not work
    "verl/utils/torch_functional.py": """
def logprobs_from_logits(logits, labels, inplace_backward=True):
    raise RuntimeError("no kernel for this device")
""",
    # found, and cannot be imported
    "flash_attn/ops/triton/cross_entropy.py": "import a_library_that_nobody_has",
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    for name, source in PEERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
        for package in (folder / name).relative_to(folder).parents[:-1]:
            (folder / package / "__init__.py").touch()
    (folder / "verl" / "__init__.py").write_text("import a_library_that_nobody_has")  # got past
    sizes = ["--tokens", "72", "24", "--vocabulary", "130", "--heads", "72,16,130", "24,16,130", "--dtype", "float32"]
    return gpu_benchmark(folder, *sizes, "--rounds", "2", "--without", "compile", "--peers", str(folder))


@pytest.fixture(scope="module")
def with_peers(outcome):
    output, printed = outcome
    return json.loads(output.read_text()), printed


@pytest.fixture(scope="module")
def head(outcome):
    """The record of the LM head, which lies in a file of its own."""
    output, printed = outcome
    return json.loads(output.with_stem(f"{output.stem}-linear").read_text()), printed


def test_gpu_benchmark_runs_where_there_is_no_gpu(with_peers):
    record, printed = with_peers
    assert [(x["tokens"], x["vocabulary"], x["dtype"]) for x in record["results"]] == [
        (72, 130, "float32"), (24, 130, "float32"),
    ]  # fmt: skip
    kinds = ["forward", "loss", "divergence", "divergence+gradient"]
    first, second = (list(result["kinds"]) for result in record["results"])
    assert first == [*kinds, "loss-masked", "loss-no_entropy"]
    assert second == kinds
    for result in record["results"]:
        for kind, summary in result["kinds"].items():
            assert summary["share_of_copy"] > 0
            assert {"policy_split", "eager"} <= set(summary["candidates"])
            for name in ("policy_split", "eager"):
                assert summary["candidates"][name]["milliseconds"] > 0, (kind, name)
                assert summary["candidates"][name]["error"] < 1e-5, (kind, name)
    assert "### Forward: log-prob and entropy" in printed
    assert {"date", "gpu", "torch", "triton"} <= set(record["machine"])


def test_a_wrong_peer_is_reported_and_not_timed(with_peers):
    record, printed = with_peers
    forward = record["results"][0]["kinds"]["forward"]
    assert forward["candidates"]["trl"]["failed"] == "wrong by 0.01, allowed 0.001"
    assert "milliseconds" not in forward["candidates"]["trl"]
    assert "faster than trl" not in forward["targets"]
    assert "- forward trl: wrong by 0.01, allowed 0.001 (everywhere)" in printed
    liger = record["results"][0]["kinds"]["loss-no_entropy"]["candidates"]["liger"]
    assert liger["failed"].startswith("wrong by")


def test_a_peer_that_raises_stops_nothing(with_peers):
    record, printed = with_peers
    why = "failed: RuntimeError: no kernel for this device"
    assert record["results"][0]["kinds"]["forward"]["candidates"]["verl"] == {"failed": why}
    assert f"- forward verl: {why} (everywhere)" in printed


def test_a_peer_that_cannot_be_imported_is_named(with_peers):
    record, printed = with_peers
    assert set(record["missing"]) == {"flash-attn"}
    assert "- flash-attn: not importable: ModuleNotFoundError: No module named 'a_library_that_nobody_has'" in printed


def test_a_peer_that_does_less_is_a_bound(with_peers):
    record, printed = with_peers
    forward = record["results"][0]["kinds"]["forward"]
    assert forward["candidates"]["quack"]["omits"] == "entropy"
    assert forward["candidates"]["quack"]["ours_is_faster"] > 0
    assert "faster than quack" not in forward["targets"]
    assert "quack (bound)" in printed


def test_gpu_benchmark_of_the_head_runs_where_there_is_no_gpu(head):
    record, printed = head
    assert [(x["tokens"], x["width"], x["vocabulary"]) for x in record["results"]] == [(72, 16, 130), (24, 16, 130)]
    first, second = (list(result["kinds"]) for result in record["results"])
    assert first == ["linear", "linear-masked", "linear-frozen"]
    assert second == ["linear"]
    for result in record["results"]:
        for kind, summary in result["kinds"].items():
            assert "<= 1.15 x the products" in summary["targets"]
            assert {"policy_split", "products", "eager"} <= set(summary["candidates"])
            for name in ("policy_split", "products", "eager"):
                measured = summary["candidates"][name]
                assert measured["milliseconds"] > 0, (kind, name)
                assert measured["of_products"] > 0, (kind, name)
                assert set(measured["errors"]) == {"hidden"} | ({"weight"} if kind != "linear-frozen" else set())
                assert max(measured["errors"].values()) < 1e-5, (kind, name)
    own = {name for name in record["results"][0]["kinds"]["linear"]["candidates"] if name.startswith("policy_split")}
    assert own == {"policy_split", "policy_split-token", "policy_split-statistics"}
    assert "### LM head, frozen weight (2 products): float32 N 72 D 16 V 130" in printed


def test_speed_of_the_head_counts_the_products_that_are_needed(head):
    kinds = head[0]["results"][0]["kinds"]
    valid = 72 - 22  # 30 % masked
    for kind, products, tokens in [("linear", 3, 72), ("linear-masked", 3, valid), ("linear-frozen", 2, 72)]:
        measured = kinds[kind]["candidates"]["policy_split"]
        operations = measured["useful_flops"] * measured["milliseconds"] / 1e3
        assert operations == pytest.approx(products * 2 * tokens * 16 * 130)


def test_an_entropy_without_a_gradient_is_noticed(head):
    """Where the clip takes the policy gradient away, nothing is left of it."""
    record, printed = head
    trl = record["results"][0]["kinds"]["linear"]["candidates"]["trl"]
    assert trl["errors"]["hidden"] == pytest.approx(1.0, abs=1e-3)
    assert trl["failed"] == "wrong by 1, allowed 0.0001"
    assert "milliseconds" not in trl
    assert "- linear trl: wrong by 1, allowed 0.0001 (everywhere)" in printed


def test_it_is_said_which_code_of_liger_ran(head):
    record, printed = head
    for kind in ("linear", "linear-masked", "linear-frozen"):
        liger = record["results"][0]["kinds"][kind]["candidates"]["liger"]
        assert liger["ran"] == "its torch fallback"
        assert liger["milliseconds"] > 0
    assert ">= 1.3 times faster than liger" in record["results"][0]["kinds"]["linear"]["targets"]
    assert "| liger (its torch fallback) |" in printed


def test_cross_entropy_alone_is_a_bound_of_the_head(head):
    record, printed = head
    kinds = record["results"][0]["kinds"]
    assert kinds["linear"]["candidates"]["quack"]["omits"] == "policy gradient, entropy"
    assert kinds["linear"]["candidates"]["quack"]["ours_is_faster"] > 0
    assert not any("quack" in target for target in kinds["linear"]["targets"])
    assert "quack" not in kinds["linear-masked"]["candidates"]
    assert "| quack (bound: without policy gradient, entropy) |" in printed


def test_compiled_once_for_any_number_of_rows():
    script = """
import torch
from benchmarks.logits import candidates, kinds
fast = kinds.compiled(candidates.eager_statistics)
for rows in (24, 40, 7):
    batch = candidates.Batch(rows, 130, torch.float32, 0)
    inputs = (batch.logits, batch.targets)
    torch.testing.assert_close(fast(*inputs), candidates.eager_statistics(*inputs))
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_the_trainer_is_smaller_from_hidden_states():
    """It prints nothing unless both ways have the same loss and gradient."""
    sizes = ["--tokens", "600", "--vocabulary", "16384", "--width", "32", "--layers", "1", "--chunk-mib", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainer.memory", *sizes],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    logits, hidden = ([cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[-2:])
    assert (logits[:2], hidden[:2]) == (["600", "logits"], ["600", "hidden states"])
    assert int(logits[2]) > 37 > int(hidden[2])  # MiB of scoring; N x V of one row is 37.5
    assert int(logits[3]) > int(hidden[3])
