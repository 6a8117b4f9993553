"""vLLM behind the interface, with a stand-in for the package: what it is told, and what becomes of its errors."""

import random
import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace

import numpy
import pytest
import tiny
import torch
from accelerate import DistributedType
from trained import trainer

from policy_split import extras
from policy_split.rollouts import sampler, vllm_engine
from policy_split.rollouts.engine import EngineError
from policy_split.rollouts.vllm_engine import VllmEngine, check_vllm


class LLM:
    """Writes down what it is told, and does what vLLM does to its process when it starts."""

    def __init__(self, **options):
        self.told = [("start", options)]
        self.failing = ()
        for seed in (random.seed, numpy.random.seed, torch.manual_seed):
            seed(0)
        torch.set_num_threads = lambda count: None

    def _told(self, name, *arguments):
        self.told.append((name, *arguments))
        if name in self.failing:
            raise RuntimeError("the device\nis lost")

    def generate(self, prompts, parameters, use_tqdm):
        self._told("generate", prompts, parameters, use_tqdm)
        torch.rand(3)
        logprobs = [{7: SimpleNamespace(logprob=-0.5)}, {2: SimpleNamespace(logprob=-1.5)}]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[7, 2], logprobs=logprobs)]) for _ in prompts]

    def collective_rpc(self, method, kwargs):
        self._told(method, dict(kwargs["weights_iterator"]))

    def apply_model(self, function):
        self._told("apply_model", function)

    def reset_prefix_cache(self):
        self._told("reset_prefix_cache")

    def sleep(self, level):
        self._told("sleep", level)

    def wake_up(self, tags):
        self._told("wake_up", tags)


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM = LLM
    module.SamplingParams = lambda **options: options
    module.cpu = True
    module.platforms = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: module.cpu))
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(metadata, "version", lambda name: {"vllm": "0.31.0"}[name])
    for name in (*vllm_engine.ENVIRONMENT, *vllm_engine.DEFAULTS):
        monkeypatch.delenv(name, raising=False)
    return module


def engine(folder, absent=(), **options):
    config = tiny.config(folder, rollout_engine="vllm", **options)
    return VllmEngine(tiny.model().config, "Qwen3ForCausalLM", torch.bfloat16, [2, 3], absent, 40, config)


def test_its_start(tmp_path, vllm):
    states = random.getstate(), torch.get_rng_state(), numpy.random.get_state()[1].tolist(), torch.set_num_threads
    ((_, told),) = engine(tmp_path, per_device_generation_batch_size=5).llm.told
    folder = told.pop("model")
    assert told == {
        "dtype": "bfloat16", "load_format": "dummy", "max_model_len": 40, "max_num_seqs": 5, "model_impl": "auto",
        "gpu_memory_utilization": 0.3, "enable_sleep_mode": False, "seed": 0, "distributed_executor_backend": "uni",
        "enforce_eager": True, "skip_tokenizer_init": True, "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs", "block_size": 32,
    }  # fmt: skip
    assert "policy-split-vllm-" in folder
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())
    assert states[2:] == (numpy.random.get_state()[1].tolist(), torch.set_num_threads)


def test_what_is_sampled(tmp_path, vllm):
    made = engine(tmp_path, [25])
    state = torch.get_rng_state()
    drawn = made.generate([[4, 5], (6,)], [11, 12], temperature=0.7, max_tokens=9)
    assert drawn == [([7, 2], [-0.5, -1.5])] * 2
    _, prompts, parameters, bar = made.llm.told[1]
    assert prompts == [{"prompt_token_ids": [4, 5]}, {"prompt_token_ids": [6]}]
    assert [each.pop("seed") for each in parameters] == [11, 12]
    expected = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 9, "logprobs": 0}
    expected["logit_bias"] = {25: float("-inf")}
    expected |= {"stop_token_ids": [2, 3], "ignore_eos": True, "detokenize": False}
    assert parameters == [expected] * 2
    assert bar is False
    assert torch.equal(state, torch.get_rng_state())


def test_an_update_packs_on_a_cpu_and_forgets_prefixes(tmp_path, vllm):
    made = engine(tmp_path)
    made.update(iter([("a", 1), ("b", 2)]))
    assert made.llm.told[1:] == [
        ("reload_weights", {"a": 1, "b": 2}),
        ("apply_model", vllm_engine._pack_tied_head),
        ("reset_prefix_cache",),
    ]
    made.rest()
    assert len(made.llm.told) == 4  # which does nothing unless it is asked for


def test_it_sleeps_during_updates(tmp_path, vllm):
    vllm.cpu = False
    made = engine(tmp_path, vllm_enable_sleep_mode=True)
    assert made.llm.told[0][1]["enforce_eager"] is False
    for _ in range(2):
        made.update(iter(()))
        made.rest()
        made.rest()
    names = [name if name != "wake_up" else (name, *rest) for name, *rest in made.llm.told[1:]]
    awake = ["reload_weights", "reset_prefix_cache", "sleep"]
    woken = [("wake_up", ["weights"]), awake[0], ("wake_up", ["kv_cache"]), *awake[1:]]
    assert names == awake + woken


@pytest.mark.parametrize("what", ["generate", "reload_weights", "apply_model"])
def test_errors_are_one_line_that_says_how_to_go_on(tmp_path, vllm, what):
    made = engine(tmp_path)
    made.llm.failing = (what,)
    with pytest.raises(EngineError) as caught:
        made.generate([[4]], [1], temperature=1.0, max_tokens=2) if what == "generate" else made.update(iter(()))
    does = "failed while it generated" if what == "generate" else "did not take the new weights"
    assert str(caught.value) == (
        f"vLLM 0.31.0 {does}: RuntimeError: the device is lost; what is finished can be resumed, also by "
        f"--rollout_engine transformers"
    )


def test_what_does_not_start(tmp_path, vllm, monkeypatch):
    with pytest.raises(ValueError, match="vLLM can put its memory to sleep on GPUs alone"):
        engine(tmp_path, vllm_enable_sleep_mode=True)

    def no_memory(**options):
        raise ValueError("No available memory\n for the cache blocks")

    vllm.LLM = no_memory
    with pytest.raises(EngineError, match=r"^vLLM 0\.31\.0 could not be started: ValueError: No available memory for"):
        engine(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match=r"^vLLM 0\.31\.0 could not be imported: ModuleNotFoundError: "):
        engine(tmp_path)


def test_a_version_that_was_not_tested_is_named(vllm, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda package: package)
    check_vllm()
    monkeypatch.setattr(metadata, "version", lambda name: "0.31.0+cpu")
    check_vllm()
    monkeypatch.setattr(metadata, "version", lambda name: "0.40.1")
    with pytest.warns(UserWarning, match=r"vLLM 0\.40\.1 has not been tested, 0\.31\.0 has"):
        check_vllm()


def test_without_vllm_the_trainer_says_so_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=r"^rollout_engine='vllm' needs the package vllm: pip install policy-spl"):
        trainer(tmp_path / "run", rollout_engine="vllm")
    assert not (tmp_path / "run").exists()


def test_what_it_cannot_do_is_said_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(sampler, "check_vllm", lambda: None)
    with pytest.raises(ValueError, match=r"vllm_max_model_length=9 is shorter than the longest prompt \(5 tokens\)"):
        trainer(tmp_path, rollout_engine="vllm", vllm_max_model_length=9)
    run = trainer(tmp_path)
    config = tiny.config(tmp_path, rollout_engine="vllm")
    for count, kind in ((2, DistributedType.MULTI_GPU), (1, DistributedType.DEEPSPEED), (1, DistributedType.FSDP)):
        several = SimpleNamespace(num_processes=count, distributed_type=kind)
        with pytest.raises(ValueError, match=f"one process with the whole model, not for {count} with {kind.value}"):
            sampler.Sampler(run.policy, config, several, 5, "1 2")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rollout_engine": "sglang"}, "rollout_engine='sglang' must be one of 'transformers', 'vllm'"),
        ({"vllm_gpu_memory_utilization": 0.5}, r"vllm_gpu_memory_utilization=0\.5 is of rollout_engine='vllm'"),
        (
            {"vllm_importance_sampling_correction": True},
            "vllm_importance_sampling_correction=True is of rollout_engine",
        ),
        (
            {"rollout_engine": "vllm", "vllm_importance_sampling_clip_max": 2.0},
            r"clip_max=2\.0 bounds weights that there are with vllm_importance_sampling_correction=True alone",
        ),
        ({"rollout_engine": "vllm", "vllm_gpu_memory_utilization": 1.5}, "must be above 0 and at most 1"),
    ],
)
def test_settings(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        tiny.config(tmp_path, **options)
