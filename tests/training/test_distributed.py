"""Several processes make the same of a step as one does, and go on from each other's checkpoints."""

import json

import distributed_cases as cases
import pytest
import torch
from processes import run_in_processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which one process and then two have run: the processes' own script compares them."""
    folder = tmp_path_factory.mktemp("distributed")
    with cases.responses_by_question():
        for name, options in cases.CASES.items():
            run = cases.trainer(folder / "one" / name, **options)
            run.train()
            rows = [json.loads(line) for line in (folder / "one" / name / "metrics.jsonl").read_text().splitlines()]
            torch.save({"weights": cases.weights(run), "metrics": rows}, folder / f"{name}.pt")
        torch.manual_seed(0)
        options = cases.CASES["fused head, dapo"] | {"save_steps": 2}
        cases.trainer(folder / "one" / cases.SAVED, **options).train()
    run_in_processes("distributed_processes.py", 2, folder)
    return folder


def test_two_processes_make_the_same_of_a_batch(two_processes):
    assert (two_processes / "fsdp2" / cases.SAVED / "checkpoints").is_dir()


@pytest.mark.parametrize("maker", ["ddp", "fsdp2"])
def test_their_checkpoints_resume_in_one_process(two_processes, tmp_path, maker):
    expected = torch.load(two_processes / "fused head, dapo.pt")["weights"]
    states = []
    for _ in range(2):
        with cases.responses_by_question():
            run = cases.trainer(tmp_path, **cases.CASES["fused head, dapo"])
            run.train(resume_from_checkpoint=two_processes / maker / cases.SAVED / "checkpoints/checkpoint-2")
        cases.same(cases.weights(run), expected, maker)
        states.append(torch.rand(2))
    assert torch.equal(*states)  # the random state follows from (seed, step, process)


def test_a_checkpoint_has_the_same_form_for_every_number_of_processes(two_processes):
    forms = []
    for maker in ("one", "ddp", "fsdp2"):
        path = two_processes / maker / cases.SAVED / "checkpoints/checkpoint-2"
        states = [json.loads((path / f"{name}.json").read_text()) for name in ("model", "optimizer")]
        forms.append(states)
        assert len(list(path.glob("random-*.json"))) == (1 if maker == "one" else 2)
    assert forms[0] == forms[1] == forms[2]
