"""Run by test_distributed in each of two processes: DDP and FSDP2 against what one process made of the same batch."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import distributed_cases as cases
import pytest
import tiny
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from processes import SAYS
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from policy_split import PolicySplitConfig
from policy_split.commands import train
from policy_split.commands.train_arguments import Asked
from policy_split.countdown import job
from policy_split.countdown.problems import Countdown
from policy_split.countdown.sizes import CountdownSize
from policy_split.models.sharding import gathered

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


@contextlib.contextmanager
def wrapped(kind):
    """What `accelerate launch` sets. accelerate shards on GPUs alone, so that it has to be told that these are some."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    kinds = {"ddp": DistributedType.MULTI_CPU, "fsdp2": DistributedType.MULTI_GPU}
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = kinds[kind]
    os.environ |= FSDP if kind == "fsdp2" else {}
    try:
        yield
    finally:
        for name in FSDP:
            os.environ.pop(name, None)


def identical_everywhere(weights, what):
    for name, value in weights.items():
        ranks = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(ranks, value.contiguous())
        assert all(torch.equal(rank, ranks[0]) for rank in ranks), (what, name)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_same_as_one_process(kind, folder):
    for name, options in cases.CASES.items():
        with wrapped(kind), cases.responses_by_question():
            run = cases.trainer(folder / kind / name, **options)
            batches, backward = [], run.update.backward
            run.update.backward = lambda *a, seen=batches, call=backward: seen.append(len(a[1])) or call(*a)
            run.train()
        assert len(batches) > run.max_steps or options.get("sparse"), name  # several micro-batches in an optimizer step
        assert isinstance(run.model, FSDPModule) == (kind == "fsdp2")
        expected, found, what = torch.load(folder / f"{name}.pt"), cases.weights(run), f"{kind}, {name}"
        cases.same(found, expected["weights"], what)
        identical_everywhere(found, what)
        dist.barrier()
        cases.same_metrics(lines(folder / kind / name), expected["metrics"], what)
        if name == "few advantages":
            counts = [None, None]
            dist.all_gather_object(counts, batches)
            assert counts[0] == counts[1]
            assert sum(batches) < 2 * 24  # of the 24 rows of each of two steps
        saved = AutoModelForCausalLM.from_pretrained(folder / kind / name, dtype=torch.float64)
        cases.same(saved.state_dict(), found, what, rtol=0, atol=0)
        assert saved.config.architectures == ["Qwen3ForCausalLM"]


def check_checkpoints(kind, folder):
    """Saved by any kind, resumed by any: bit for bit by the same, to rounding by others."""
    expected = torch.load(folder / "fused head, dapo.pt")["weights"]
    options, own = cases.CASES["fused head, dapo"] | {"save_steps": 2}, folder / kind / cases.SAVED
    with wrapped(kind), cases.responses_by_question():
        run = cases.trainer(own, **options)
        torch.manual_seed(run.accelerator.process_index)
        run.train()
        drawn = torch.rand(3)
        whole = cases.weights(run)
        cases.same(whole, expected, kind)
        for maker, exactly in ((kind, True), ("ddp", kind == "ddp"), ("one", False)):
            run = cases.trainer(folder / f"{kind} of {maker}", **options | {"save_steps": 0})
            run.train(resume_from_checkpoint=folder / maker / cases.SAVED / "checkpoints/checkpoint-2")
            tolerance = {"rtol": 0, "atol": 0} if exactly else {}
            cases.same(cases.weights(run), whole, f"{kind} of {maker}", **tolerance)
            ranks = [torch.empty(3) for _ in range(2)]
            again = torch.rand(3)
            dist.all_gather(ranks, again)
            assert not torch.equal(*ranks)  # each process has a random state of its own
            assert torch.equal(again, drawn) == (maker != "one")


def check_sampling(folder):
    """Real responses, which end where they end: no process waits for another in generate; the KL and evaluation."""
    with wrapped("fsdp2"):
        options = cases.OPTIONS | {"beta": 0.1, "eval_steps": 3, "eval_num_samples": 2}
        config = tiny.config(folder / "sampled", **options)
        data = (tiny.QUESTIONS, config, tiny.HELD_OUT[:5])
        run = cases.PolicySplitTrainer(tiny.model(), tiny.tokenizer(), tiny.reward, *data)
        whole = cases.weights(run)
        with gathered(run.model):
            inside = dict(run.model.named_parameters())
            assert not any(isinstance(x, DTensor) for x in inside.values())
            assert all(torch.equal(x, whole[name]) for name, x in inside.items())
            if run.accelerator.is_main_process:  # alone
                run.model(input_ids=torch.tensor([[9, 10]]))
        assert all(isinstance(x, DTensor) for x in run.model.parameters())
        assert all(isinstance(x, DTensor) for x in run.reference.bare.parameters())
        run.train()
    lengths = [None, None]
    dist.all_gather_object(lengths, run.sample().completion_lengths)
    assert lengths[0] != lengths[1]
    identical_everywhere(cases.weights(run), "sampled")


def check_precision(folder):
    """bfloat16 weights in the forward; log-probs and gradients in float32."""
    with wrapped("fsdp2"):
        config = tiny.config(folder / "bfloat16", **cases.OPTIONS | {"bf16": True, "max_steps": 1})
        run = cases.PolicySplitTrainer(tiny.model(), tiny.tokenizer(), tiny.reward, tiny.QUESTIONS, config)
        _, rollout = run.step()
    logprobs = rollout.logprobs[rollout.mask]
    assert logprobs.dtype == torch.float32
    assert not torch.equal(logprobs, logprobs.bfloat16().float())
    with gathered(run.model):
        assert {x.dtype for x in run.model.parameters()} == {torch.bfloat16}
    assert {x.dtype for x in run.model.parameters()} == {torch.float32}


def check_job(kind, folder):
    """The built-in task: both evaluations are of all processes, and the first one writes and prints."""
    task = Countdown(numbers=2, largest=9, largest_target=20, fewest_answers=1, test_share=0.2)
    counts = {"train_questions": 40, "held_out_questions": 5, "warm_start_examples": 20, "warm_start_steps": 2}
    size = CountdownSize(task, width=32, layers=1, **counts)
    options = {"max_steps": 1, "save_steps": 0, "prompts_per_step": 2, "num_generations": 2, "use_cpu": True}
    written, printed = [], io.StringIO()
    with (
        wrapped(kind),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()) as bars,
    ):
        replace_text = job.replace_text
        patch.setattr(job, "replace_text", lambda *a: written.append(a[0].name) or replace_text(*a))
        config = PolicySplitConfig(**size.settings | options, output_dir=str(folder / kind / "job"), disable_tqdm=False)
        asked = Asked(config, size, resume=False, resume_anyway=False, sources={})
        assert train.train_countdown(asked, size) == 0
        first = PartialState().is_main_process
    assert written == (["before.json", "results.json", "table.md"] if first else [])
    assert ("results: " in printed.getvalue()) == ("warm start" in bars.getvalue()) == first
    dist.barrier()  # written by the first
    results = json.loads((folder / kind / "job" / "results.json").read_text())
    assert results["after"]["num_prompts"] == 5
    questions = results["after"]["normal"]["best_of_n"] * 5
    assert questions == pytest.approx(round(questions))  # every question counts once


def check_errors(folder):
    with wrapped("fsdp2"):
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
        with pytest.raises(ValueError, match="accelerate has made MULTI_CPU of it: it shards models on GPUs alone"):
            cases.trainer(folder / "cpu")
    with wrapped("fsdp2"):
        os.environ["FSDP_VERSION"] = "1"
        with pytest.raises(ValueError, match="fsdp_version=1 cannot be used"):
            cases.trainer(folder / "first")
    with wrapped("ddp"), pytest.raises(ValueError, match="prompts_per_step=3 must be a multiple of the 2 processes"):
        cases.trainer(folder / "odd", prompts_per_step=3)


def main(rank, processes, file):
    os.environ |= {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=int(processes))
    torch.set_num_threads(1)
    folder = Path(file).parent
    check_errors(folder)
    for kind in ("ddp", "fsdp2"):
        check_same_as_one_process(kind, folder)
        check_checkpoints(kind, folder)
        check_job(kind, folder)
    check_sampling(folder)
    check_precision(folder)
    dist.barrier()
    dist.destroy_process_group()
    print(SAYS.format(rank=rank, processes=processes))


if __name__ == "__main__":
    main(*sys.argv[1:])
