"""A whole training of verl on CPUs, launched by examples/verl/run.sh: Ray, verl's queue, agent loops and FSDP2 actors.

The Ray cluster is started apart and without VERL_USE_EXTERNAL_MODULES, as one of many machines is. In place of GPUs and
vLLM stand the platform and the engine of verl_cpu.py.
"""

import json
import math
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from policy_split.algorithms.kl_target import HeldEta

pytest.importorskip("verl", reason="verl is not installed", exc_type=ImportError)
SUPPORT = Path(tiny.__file__).parent
RUN = Path(__file__).parents[2] / "examples" / "verl" / "run.sh"
PROCESSES = 2
CLUSTER = f"""
import ray, sys
ray.init(num_cpus=16, num_gpus={PROCESSES}, include_dashboard=False)  # as many as verl asks for; the machine has fewer
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **columns):
    return sum(word in "abcdefgh" for word in solution_str.split()) / 6
"""
SETTINGS = {
    "data.train_batch_size": 4,
    "data.max_prompt_length": 16,
    "data.max_response_length": 6,
    "data.dataloader_num_workers": 0,
    "algorithm.policy_split.high_entropy_prompt": "explore",
    "algorithm.policy_split.eta": 0.5,
    "algorithm.policy_split.target_kl": 0.001,
    "algorithm.policy_split.clamp": "code",
    "actor_rollout_ref.actor.strategy": "fsdp2",
    "actor_rollout_ref.actor.optim.lr": 1e-2,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 2,  # two updates a step
    "actor_rollout_ref.actor.use_dynamic_bsz": False,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 8,
    "actor_rollout_ref.rollout.name": "tiny",
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
    "actor_rollout_ref.rollout.n": 4,
    "actor_rollout_ref.rollout.agent.num_workers": 1,
    "actor_rollout_ref.model.use_remove_padding": False,
    "actor_rollout_ref.model.use_fused_kernels": True,
    "actor_rollout_ref.model.fused_kernel_options.impl_backend": "torch",
    "+actor_rollout_ref.model.override_config.attn_implementation": "eager",
    "reward.num_workers": 1,
    "trainer.device": "cpu",
    "trainer.n_gpus_per_node": PROCESSES,
    "trainer.logger": "[console]",
    "trainer.total_training_steps": 2,
    "trainer.save_freq": 2,
    "trainer.test_freq": 2,
    "trainer.val_before_train": False,
    "ray_kwargs.ray_init.num_cpus": "null",
}


@pytest.fixture
def environment():
    """Of every process but what names the modules, which the launch alone has."""
    own = {"VERL_PLATFORM": "cpu", "PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {k: v for k, v in os.environ.items() if k != "VERL_USE_EXTERNAL_MODULES"} | own | {"PATH": path}


@pytest.fixture
def address(environment):
    given = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    cluster = subprocess.Popen([sys.executable, "-c", CLUSTER], env=environment, **given)
    yield cluster.stdout.readline().strip()
    cluster.communicate(timeout=60)  # the end of its standard input is its own


@pytest.fixture
def folder(tmp_path):
    pandas = pytest.importorskip("pandas")
    tiny.model("llama", max_position_embeddings=128).save_pretrained(tmp_path / "model")
    tiny.tokenizer(chat=True).save_pretrained(tmp_path / "model")
    rows = [
        {
            "data_source": "tiny",
            "prompt": [{"role": "user", "content": question["prompt"]}],
            "ability": "words",
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": index},
        }
        for index, question in enumerate(2 * tiny.QUESTIONS)
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    pandas.DataFrame(rows[:2]).to_parquet(tmp_path / "test.parquet")
    (tmp_path / "reward.py").write_text(REWARD)
    return tmp_path


def metrics_of(said: str) -> list[dict[str, float]]:
    """The lines of verl's console logger."""
    lines = re.findall(r"step:\d+ - .*", said)
    pairs = [re.findall(r"([\w/@-]+):(?:np\.\w+\()?(-?[\d.e-]+|nan|inf)", line) for line in lines]
    return [{name: float(value) for name, value in line} for line in pairs]


def trained(environment, address, folder, **overrides):
    """What verl logs of each step."""
    modules = {"VERL_USE_EXTERNAL_MODULES": "verl_cpu,policy_split.integrations.verl.kernels"}
    settings = SETTINGS | {
        "reward.custom_reward_function.path": folder / "reward.py",
        "+ray_kwargs.ray_init.address": address,
        "trainer.default_local_dir": folder / "checkpoints",
    }
    settings |= {f"trainer.{name}": value for name, value in overrides.items()}
    command = ["bash", RUN, folder, folder / "model", *(f"{name}={value}" for name, value in settings.items())]
    done = subprocess.run(command, env=environment | modules, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return metrics_of(done.stdout)


@pytest.mark.timeout(700)
def test_two_steps_and_a_third_after_a_resume(environment, address, folder):
    first, second = trained(environment, address, folder)
    for step in (first, second):
        assert step["policy_split/incomplete_frac"] == 0
        assert step["policy_split/kl_high_normal"] > 0
        assert step["policy_split/kl_normal_high"] > 0
        assert step["critic/score/mean"] == pytest.approx((step["normal/reward"] + step["high_entropy/reward"]) / 2)
        assert 0 < step["normal/entropy"] < math.log(len(tiny.WORDS))
        assert step["actor/grad_norm"] > 0
    assert 0 <= second["val-core/tiny/acc/mean@1"] <= 1

    events = [json.loads(line) for path in folder.glob("model/*.jsonl") for line in path.read_text().splitlines()]
    explored = tiny.WORDS.index("explore")
    for step in (0, 1):  # 4 questions of 4 responses, half of them of each mode; and of the weights of the step
        asked = [event["asked"] for event in events if "asked" in event and event["step"] == step]
        assert len(asked) == 16
        assert sum(explored in prompt for prompt in asked) == 8
    validated = [event["asked"] for event in events if "asked" in event and event["step"] == 2]
    assert len(validated) == 2
    assert not any(explored in prompt for prompt in validated)
    given = {step: {e["weights"] for e in events if "weights" in e and e["step"] == step} for step in (0, 1, 2)}
    assert [len(sums) for sums in given.values()] == [1, 1, 1]  # both engines have the same
    assert len(set.union(*given.values())) == 3  # and others after each step

    # eta moves to hold the KL at a target that is exceeded, and goes on from the checkpoint
    target, held, etas = 0.001, HeldEta(0.5), []
    assert first["policy_split/kl_high_normal"] > target
    for step in (first, second):
        etas.append(held.applied(target))
        held = held.after(step["policy_split/kl_high_normal"], target, 0.5)
    assert [first["policy_split/eta"], second["policy_split/eta"]] == pytest.approx(etas)
    saved = json.loads((folder / "checkpoints" / "global_step_2" / "policy_split_eta.json").read_text())
    assert HeldEta(**saved) == pytest.approx(held, rel=1e-6)
    (third,) = trained(environment, address, folder, total_training_steps=3)
    assert third["training/global_step"] == 3
    assert third["policy_split/eta"] == pytest.approx(HeldEta(**saved).applied(target))
