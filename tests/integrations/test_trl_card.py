"""The model card of TRL's trainer."""

from pathlib import Path

import pytest
import tiny
import yaml

pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)

from trl_runs import trainer

from policy_split.model_card.split import read_split
from policy_split.run_folder.model_folder import MARK

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:trl"),
]
CHAT = [{"prompt": [{"role": "user", "content": text}], "wanted": "a"} for text in ("1 2", "3", "4 5", "6")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = trainer(tmp_path_factory.mktemp("run"), questions=CHAT, max_steps=2, save_strategy="steps", save_steps=2)
    made.train()
    made.save_model()
    return made


def test_a_saved_model_has_our_card_and_so_has_its_checkpoint(run):
    folder = run.args.output_dir
    for path in (folder, f"{folder}/checkpoint-2"):
        text = Path(path, "README.md").read_text()
        assert MARK in text
        head = yaml.safe_load(text.split("---\n")[1])
        assert head["tags"] == ["trl", "grpo", "policy-split", "reinforcement-learning"]
        assert "system explore user" in text
        split = read_split(Path(path))
        assert (split.high_entropy_prompt, split.max_completion_length) == ("explore", 6)
    last = [row for row in run.state.log_history if "normal/reward" in row][-1]
    assert f"| reward | {last['normal/reward']:.4g} | {last['high_entropy/reward']:.4g} |" in text
    assert f"KL(high-entropy ‖ normal): {last['policy_split/kl_high_normal']:.4g} nats" in text
    assert "| eta_high | `0.5` |" in text


def test_create_model_card_takes_what_trl_gives_it(run):
    run.create_model_card(model_name="x", dataset_name="openai/gsm8k", tags="mine")
    head = yaml.safe_load(Path(run.args.output_dir, "README.md").read_text().split("---\n")[1])
    assert head["datasets"] == ["openai/gsm8k"]
    assert head["tags"][-1] == "mine"


def test_the_card_of_peft_gives_way_and_somebody_elses_stays(tmp_path):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    made = trainer(tmp_path / "run", questions=CHAT, model=tiny.model(), peft_config=settings)
    made.save_model()
    text = (tmp_path / "run/README.md").read_text()
    assert MARK in text
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "peft"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("---\nlicense: mit\n---\nmine\n")
    made.save_model(str(tmp_path / "mine"))
    assert "mine" in (tmp_path / "mine/README.md").read_text()
    assert MARK not in (tmp_path / "mine/README.md").read_text()
