"""A study with more steps than its finished runs: as one that was asked for them at once."""

import json
import shutil
from dataclasses import replace

import pytest
from study_plan import PLAN

from policy_split.study.longer import is_longer
from policy_split.study.results import read_results
from policy_split.study.runner import prepare, run_study
from policy_split.study.variants import chosen_variants

ONE = replace(PLAN, variants=chosen_variants(["policy_split"], 0.6), seeds=(1,))
LONGER = replace(ONE, settings={"max_steps": 6})


def measured(folder):
    """Everything that a run says of itself but its times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = {name for name in rows[0] if "time" in name or "per_second" in name}
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def test_it_goes_on_as_if_it_had_never_ended(tmp_path):
    at_once, later = tmp_path / "at-once", tmp_path / "later"
    run_study(LONGER, at_once)
    shutil.copytree(at_once / "warm-start", later / "warm-start")
    run_study(ONE, later)
    ended = json.loads((later / "policy_split-1" / "evaluation.json").read_text())
    run_study(LONGER, later)
    one, other = (folder / "policy_split-1" for folder in (at_once, later))
    assert len(measured(one)) == 6
    assert measured(other) == measured(one)
    assert (other / "evaluation.json").read_text() == (one / "evaluation.json").read_text()
    assert (other / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()
    between = json.loads((other / "evaluation-4.json").read_text())
    assert between["modes"] == ended["modes"]
    assert between == json.loads((one / "evaluation-4.json").read_text())
    steps = [
        [m.step for m in read_results(LONGER, folder).runs["policy_split"][1].milestones] for folder in (at_once, later)
    ]
    assert steps == [[0, 2, 4, 6]] * 2


def test_what_is_cut_between_the_steps_of_lengthening_is_whole_or_cut(tmp_path):
    """The spec is written last, so that the run of fewer steps may still be asked for."""
    folder = tmp_path / "policy_split-1"
    (spec,) = (ONE.run_spec(variant, seed) for variant, seed in ONE.runs)
    prepare(folder, spec)
    (folder / "config.json").write_text("{}")
    (folder / "evaluation.json").write_text('{"modes": 1, "questions": []}')
    longer = spec | {"settings": spec["settings"] | {"max_steps": 6}}
    prepare(folder, longer)
    assert not (folder / "evaluation.json").exists()
    assert not (folder / "config.json").exists()
    assert json.loads((folder / "evaluation-4.json").read_text()) == {"modes": 1}
    assert json.loads((folder / "spec.json").read_text()) == json.loads(json.dumps(longer))
    with pytest.raises(ValueError, match="holds a run with other settings"):
        prepare(folder, spec)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"max_steps": 4}, {"max_steps": 5}, True),
        ({"max_steps": 4}, {"max_steps": 4}, False),
        ({"max_steps": 4}, {"max_steps": 3}, False),
        ({"max_steps": -1}, {"max_steps": 3}, False),
        ({"max_steps": 4}, {"max_steps": 5, "seed": 2}, False),
        ({"max_steps": 4, "of_long_ago": 1}, {"max_steps": 5}, False),
        ({"max_steps": 4, "lr_scheduler_type": "linear"}, {"max_steps": 5, "lr_scheduler_type": "linear"}, False),
        ({"max_steps": 4, "lr_scheduler_type": "cosine"}, {"max_steps": 5, "lr_scheduler_type": "constant"}, False),
    ],
)
def test_only_more_steps_at_a_constant_rate_are_more_of_the_same(before, after, expected):
    constant = {"lr_scheduler_type": "constant"}
    there, wanted = ({"split": "test", "settings": constant | given} for given in (before, after))
    assert is_longer(there, wanted) is expected
    assert not is_longer(there, wanted | {"split": "held_out"})
    assert not is_longer({"split": "test"}, {"split": "test"})
