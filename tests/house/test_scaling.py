"""The cost model's formulas against numbers worked out by hand, and what its command prints."""

import pytest

from benchmarks.scaling import points
from benchmarks.scaling.cost_model import (
    Batch,
    Machine,
    Model,
    Setup,
    activation_bytes,
    cache_bytes,
    head_bytes,
    layer_flops,
    layer_parameters,
    memory,
    micro_batches,
    parameters,
    rows,
    saved_elements,
    seconds,
)

SMALL = Model(layers=2, width=4, heads=2, kv_heads=1, head_dim=3, mlp=10, vocabulary=100)
BATCH = Batch(questions=4, generations=2, prompt=6, response=10, micro_rows=8)
ONE = Setup(compute_bytes=4, chunk_bytes=1000)


def test_parameters_and_flops():
    # q, o: 4 x 6 each; k, v: 4 x 3 each; MLP 3 x 4 x 10; two norms of 4
    assert layer_parameters(SMALL) == 48 + 24 + 120 + 8 == 200
    assert parameters(SMALL) == 2 * 200 + 2 * 400 + 4
    assert parameters(SMALL._replace(tied=True)) == 2 * 200 + 400 + 4
    assert layer_flops(SMALL, context=8) == 2 * 192 + 4 * 6 * 4
    assert saved_elements(SMALL) == 24 + (10 + 4) * 3 + 40


def test_rows():
    """n responses of each mode, each under both prompts."""
    assert rows(BATCH, ONE) == 32
    assert micro_batches(BATCH, ONE) == 4
    assert rows(BATCH, Setup(ranks=4)) == 8


def test_bytes():
    assert activation_bytes(SMALL, BATCH, ONE) == 8 * 16 * 2 * 106 * 4
    checkpointed = ONE._replace(checkpointing=True)
    assert activation_bytes(SMALL, BATCH, checkpointed) == 8 * 16 * (2 * 4 + 106) * 4
    assert head_bytes(SMALL, BATCH, ONE) == 1000 + 1600  # a chunk, and the weight's gradient
    assert head_bytes(SMALL, BATCH, ONE._replace(fused_head=False)) == 2 * 8 * 10 * 100 * 4
    assert cache_bytes(SMALL, BATCH, ONE) == 16 * (16 * 2 * 2 * 3 * 4 + 1200)
    assert cache_bytes(SMALL, BATCH._replace(generation_rows=3), ONE) == 3 * (16 * 2 * 2 * 3 * 4 + 1200)


def test_sharding_divides_what_is_always_there():
    p = parameters(SMALL)
    one, ddp = memory(SMALL, BATCH, ONE), memory(SMALL, BATCH, ONE._replace(ranks=4))
    fsdp = memory(SMALL, BATCH, ONE._replace(ranks=4, sharded=True))
    assert one["states"] == ddp["states"] == 12 * p == 4 * fsdp["states"]
    assert one["optimizer"] == 4 * p  # gradients
    assert ddp["optimizer"] == 8 * p  # and the buckets
    assert fsdp["optimizer"] == p
    # the whole model is gathered to generate, in the dtype it computes in
    assert fsdp["generation"] - ddp["generation"] == pytest.approx(
        4 * p - cache_bytes(SMALL, BATCH, ONE) / 4 + cache_bytes(SMALL, BATCH, ONE) / 4
    )
    assert one["peak"] == one["states"] + max(one["generation"], one["update"], one["optimizer"])


def test_seconds():
    machine = Machine(flops=1e6, bandwidth=1e6, link=1e6, overlap=False)
    one, two = seconds(SMALL, BATCH, ONE, machine), seconds(SMALL, BATCH, ONE._replace(ranks=2), machine)
    tokens, p = 32 * 16, parameters(SMALL)
    forward = 2 * tokens * (layer_flops(SMALL, 16) + 2 * 106 * 4) / 1e6
    head = 320 * 100 * (8 + 8) / 1e6
    assert one["scoring"] == pytest.approx(forward + head)
    assert one["update"] == pytest.approx(3 * (forward + head))
    assert one["optimizer"] == pytest.approx(40 * p / 1e6)
    assert one["communication"] == 0
    assert two["communication"] == pytest.approx(2 * 4 * p / 2 / 1e6)  # one all-reduce of two processes
    assert two["update"] == pytest.approx(1.5 * (forward + head) + two["communication"])
    hidden = seconds(SMALL, BATCH, ONE._replace(ranks=2), machine._replace(overlap=True))
    assert hidden["update"] == pytest.approx(max(1.5 * (forward + head), two["communication"]))
    assert sum(one[part] for part in ("generation", "scoring", "update", "optimizer")) == pytest.approx(one["step"])


def test_generation_reads_every_weight_for_every_token():
    slow = Machine(flops=1e15, bandwidth=1e6, link=1e6)
    b, p = BATCH._replace(prompt=0), parameters(SMALL)
    found = seconds(SMALL, b, ONE, slow)["generation"]
    cache = 16 * 5 * 2 * 2 * 3 * 4
    assert found == pytest.approx(10 * (4 * p + cache + 16 * 24 * 100) / 1e6)
    twice = seconds(SMALL, b._replace(generation_rows=8), ONE, slow)["generation"]
    assert twice == pytest.approx(20 * (4 * p + cache / 2 + 8 * 24 * 100) / 1e6)


def test_what_fsdp2_sends():
    machine = Machine(flops=1e6, bandwidth=1e6, link=1e6, overlap=False)
    s, p = Setup(ranks=4, sharded=True, compute_bytes=2), parameters(SMALL)
    # two bytes: once to generate, for each of one micro-batch once to score, twice to train; four bytes of gradient
    assert seconds(SMALL, BATCH, s, machine)["communication"] == pytest.approx((4 * 2 * p + 4 * p) * 0.75 / 1e6)


def test_the_published_sizes_are_those_of_the_names():
    sizes = {name: round(parameters(m) / 1e9, 1) for name, m in points.MODELS.items()}
    assert sizes == {"1.7B": 1.7, "8B": 8.2, "32B": 32.8, "70B": 70.6}


def test_the_command_says_that_gpus_are_not_measured(capsys):
    points.main(["--predictions"])
    text = capsys.readouterr().out
    assert text.startswith("## Predicted for GPUs: not measured yet")
    assert sum(line.startswith("| 70B | 64 |") for line in text.splitlines()) == 2


def test_one_forward_less_and_prompts_once():
    """Rates at which every number of the model is a count: a FLOP a second, memory for nothing."""
    rates = Machine(flops=1.0, bandwidth=1e30, link=1.0)
    apart = seconds(SMALL, BATCH, ONE, rates)
    together = seconds(SMALL, BATCH, ONE._replace(first_pass=True), rates)
    head = 32 * 10 * 2 * 4 * 100  # one GEMM of the LM head over all responses
    assert together["scoring"] == 0
    assert together["update"] == pytest.approx(apart["update"] + head)
    assert apart["step"] - together["step"] == pytest.approx(apart["scoring"] - head)
    forward = 2 * layer_flops(SMALL, context=16)
    shared = seconds(SMALL, BATCH, ONE._replace(shared_prompts=True), rates)
    # 32 rows of 16 tokens; with 6 tokens of a prompt for every 2n = 4 rows, 8 groups
    assert apart["scoring"] - shared["scoring"] == pytest.approx((32 - 8) * 6 * forward)
    assert apart["generation"] - shared["generation"] == pytest.approx((16 - 8) * 6 * 2 * layer_flops(SMALL, context=6))
    half = seconds(SMALL, BATCH, ONE._replace(live=0.5), rates)
    assert half["scoring"] == apart["scoring"] / 2
    assert half["generation"] == apart["generation"]
