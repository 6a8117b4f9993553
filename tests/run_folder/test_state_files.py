"""A state is read as it was written, with the names of the model, and nothing of it is unpickled."""

import json
import math
import pickle
import random

import numpy
import pytest
import torch
from run_files import same
from trained import trainer, weights

from policy_split.storage.state_files import read_state, write_state


def test_a_state_is_read_as_it_was_written(tmp_path):
    tied = torch.randn(3, 2)
    state = {
        "numbers": [1, 0.1, -math.inf, True, None, "text"],
        "nested": {3: (torch.tensor(2.0, dtype=torch.float64), {"tensor": 1}), 7: []},
        "a.b": torch.ones(2, dtype=torch.bfloat16),
        "a": {"b": torch.zeros(0, 4)},
        "tied": [tied, tied, tied.t(), tied[1:]],
        "random": random.getstate(),
    }
    write_state(tmp_path, "state", state)
    got = read_state(tmp_path, "state")
    assert got["numbers"] == state["numbers"]
    assert got["random"] == state["random"]
    assert got["nested"][7] == []
    number, marked = got["nested"][3]
    assert (number.item(), number.dtype, marked) == (2.0, torch.float64, {"tensor": 1})
    assert torch.equal(got["a.b"], state["a.b"])
    assert got["a"]["b"].shape == (0, 4)
    assert all(torch.equal(a, b) for a, b in zip(got["tied"], state["tied"], strict=True))
    assert json.loads((tmp_path / "state.json").read_text())["tied"][:2] == [{"tensor": "tied.0"}] * 2


@pytest.mark.parametrize(
    ("state", "expected"),
    [({"a": [{1, 2}]}, r"a\.0: cannot write a set"), ({"a": {(1, 2): 3}}, "a: keys must be texts or integers")],
)
def test_a_state_that_cannot_be_written_is_named(tmp_path, state, expected):
    with pytest.raises(TypeError, match=expected):
        write_state(tmp_path, "state", state)


def test_nothing_is_unpickled(tmp_path, undisturbed, monkeypatch):
    trainer(tmp_path, max_steps=2, save_steps=2, lr_scheduler_type="linear").train()
    for path in (tmp_path / "checkpoints/checkpoint-2").iterdir():
        assert path.suffix in (".json", ".safetensors")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load"))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("pickle.load"))
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("pickle.loads"))
    resumed = trainer(tmp_path, max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.progress.step == 2


def test_weights_of_a_checkpoint_have_the_names_of_the_model(tmp_path):
    from safetensors.torch import load_file

    run = trainer(tmp_path, max_steps=1, save_steps=1)
    run.train()
    assert same(load_file(tmp_path / "checkpoints/checkpoint-1/model.safetensors"), weights(run))


def test_random_states_of_every_library_come_back(tmp_path):
    def draws():
        return random.random(), numpy.random.rand(), torch.rand(()).item()

    run = trainer(tmp_path, max_steps=2)
    run.step()
    run.state.mark()
    run.state.save(tmp_path, None)
    expected = draws()
    trainer(tmp_path, max_steps=2).state.load(tmp_path / "checkpoints/checkpoint-1")
    assert draws() == expected
