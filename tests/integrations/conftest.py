"""What tests of verl share; where verl is not installed they are skipped."""

import warnings

import pytest
import tiny
from verl_runs import Engine, Grader, configuration


@pytest.fixture(scope="session")
def ours():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # verl's packages warn when they are imported
        pytest.importorskip("verl", reason="verl is not installed", exc_type=ImportError)
        from verl.trainer.ppo.v1 import agent_loop_tq, trainer_sync  # noqa: F401
        from verl.workers.utils import padding  # noqa: F401

        from policy_split.integrations.verl import trainer as verl
    return verl


@pytest.fixture
def worker(ours, monkeypatch):
    """verl's own worker of the agent loops, without Ray: an engine, a grader and a queue of the tests."""
    from verl.trainer.ppo.v1 import agent_loop_tq

    queue = {}

    async def put(keys, fields, tags, partition_id):
        queue.update(zip(keys, fields, strict=True))

    async def put_status(key, partition_id, tag):
        queue["status"] = tag["status"]

    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_batch_put", put)
    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_put", put_status)
    made = object.__new__(agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class)
    made.config, made.queue = configuration(high_entropy_prompt="explore"), queue
    made.llm_client, made.tokenizer = Engine(), tiny.tokenizer(chat=True)
    made.processor = made.hf_model_type = made.dataset_cls = None
    made.tools, made.mm_processor_kwargs, made.distillation_enabled = [], {}, False
    made.reward_loop_worker_handles = [Grader()]
    return made
