"""Packed batches: the padded trainer's numbers without its padding, and no sequence that reads another."""

import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_models import EXPERTS, SIZES, made
from packaging import version
from packed_cases import QUESTIONS, rolled, sliding
from trained import lines, trainer, weights

from policy_split.models.batches import PackedBatch, PaddedBatch
from policy_split.models.lm_head import patch_lm_head
from policy_split.models.policy import Policy, enable_checkpointing
from policy_split.rollouts.micro_batches import micro_batches
from policy_split.rollouts.rollout import score

SMALL = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "eos_token_id", "pad_token_id")}


def policies(model, *, fused=False):
    """(padded, packed) of one model."""
    if fused:
        patch_lm_head(model)
    tokenizer = tiny.tokenizer()
    return [Policy(model, tokenizer, fused=fused, packed=packed) for packed in (False, True)]


def packed_trainer(folder, packed=True, **options):
    run = trainer(folder, packed_batches=packed, share_prompts=False, dataset=QUESTIONS, **options)
    for policy in (run.policy, run.reference):
        if policy is not None:
            assert policy.packed == packed
    return run


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=6), st.data())
def test_layout(lengths, data):
    prompts, responses = (list(column) for column in zip(*lengths, strict=True))
    rows = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, max_size=6, unique=True))
    ids = torch.arange(1000).view(10, 100)[: len(lengths)]
    prompt_ids, completion_ids = ids[:, :7], ids[:, 50 : 50 + max(responses)]
    batch = PackedBatch(rows, prompt_ids, completion_ids, prompts, responses)
    whole = [[*prompt_ids[r, 7 - prompts[r] :], *completion_ids[r, : responses[r]]] for r in rows]
    inputs = batch.inputs
    assert inputs["input_ids"].tolist() == [[int(i) for sequence in whole for i in sequence[:-1]]]
    assert inputs["position_ids"].tolist() == [[i for sequence in whole for i in range(len(sequence) - 1)]]
    assert inputs["cu_seq_lens_q"].diff().tolist() == [len(sequence) - 1 for sequence in whole]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert inputs["max_length_q"] == max(len(sequence) - 1 for sequence in whole)
    targets = batch.gather(completion_ids)
    assert targets.tolist() == [int(i) for r in rows for i in completion_ids[r, : responses[r]]]
    kept = inputs["logits_to_keep"]
    following = [int(i) for sequence in whole for i in sequence[1:]]  # what each position predicts
    assert [following[i] for i in kept] == targets.tolist()
    expected = PaddedBatch(rows, prompt_ids, completion_ids, prompts, responses).gather(completion_ids)
    mask = torch.arange(expected.shape[1]) < torch.tensor([[responses[r]] for r in rows])
    assert torch.equal(batch.scatter(targets), expected * mask)
    states = torch.randn(1, len(following), 2)
    assert torch.equal(batch.predictions(states), states[0, kept])
    assert torch.equal(batch.predictions(states[:, kept]), states[0, kept])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "kind", ["qwen3 tied", "llama", "gpt2", "gemma2", "gemma2 eager", "mixtral", "cohere", "granite", "sliding"]
)
def test_scores_are_those_of_padded_batches(tmp_path, kind, fused):
    model = sliding() if kind == "sliding" else made(kind.removesuffix(" eager"))
    if kind.endswith("eager"):
        model.set_attn_implementation("eager")
    padded, packed = policies(model.eval(), fused=fused)  # padded eager attention is NaN in float64
    config = tiny.config(tmp_path, per_device_train_batch_size=7)
    rollout = rolled(padded, config)
    batches = micro_batches(rollout, range(len(rollout.mode)), config)
    expected, found = (score(policy, rollout, batches, 0.7) for policy in (padded, packed))
    for name in ("logprobs", "entropy"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=2e-5)
        assert getattr(found, name).abs().sum() > 1


def test_nothing_is_computed_for_padding(tmp_path):
    _, packed = policies(tiny.model())
    rollout, seen = rolled(packed, tiny.config(tmp_path)), []
    packed.bare.model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].shape), with_kwargs=True)
    packed.bare.lm_head.register_forward_hook(lambda m, inputs, out: seen.append(out.shape[:2]))
    rows = [0, 5, 50]
    score(packed, rollout, [rows], 1.0)
    responses = sum(rollout.completion_lengths[row] for row in rows)
    assert seen == [(1, sum(rollout.prompt_lengths[row] for row in rows) + responses - 3), (1, responses)]


@pytest.mark.parametrize(
    ("kind", "attention"),
    [("qwen3", "sdpa"), ("qwen3", "eager"), ("sliding", "sdpa"), ("gemma2", "eager"), ("gpt2", "sdpa")],
)
def test_nothing_leaks_from_one_sequence_into_another(kind, attention):
    """Forward: other tokens of one sequence leave the others' logits bit for bit; backward: they get no gradient."""
    model = {"qwen3": tiny.model, "sliding": sliding}.get(kind, lambda: made(kind))().eval()
    model.set_attn_implementation(attention)
    _, packed = policies(model)
    generator = torch.Generator().manual_seed(0)
    prompts, responses, sizes = [5, 1, 3], [2, 4, 3], [6, 4, 5]
    tables = [torch.randint(3, 26, (3, width), generator=generator) for width in (5, 4)]
    batch = PackedBatch(range(3), *tables, prompts, responses)
    before = packed.completion_logits(batch)
    for row in range(3):
        others = [table.clone() for table in tables]
        others[0][row] = (others[0][row] + 1) % 26
        others[1][row, : responses[row] - 1] += 1
        after = packed.completion_logits(PackedBatch(range(3), *others, prompts, responses))
        same = [torch.equal(*pair) for pair in zip(before.split(responses), after.split(responses), strict=True)]
        assert same == [other != row for other in range(3)]
    embedded = []
    hook = lambda module, inputs, out: embedded.append(out)  # noqa: E731
    with torch.enable_grad():
        handle = model.get_input_embeddings().register_forward_hook(hook)
        logits = packed.completion_logits(batch).split(responses)
        handle.remove()
        for row in range(3):
            (gradient,) = torch.autograd.grad(logits[row].sum(), embedded[0], retain_graph=True)
            reached = [bool(part.any()) for part in gradient[0].split(sizes)]
            assert reached == [other == row for other in range(3)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2, "beta": 0.1, "entropy_coef_high_entropy": 0.01, "delta": 3.0, "loss_type": "grpo"},
        {"temperature": 0.7, "gradient_checkpointing": True, "mask_truncated_completions": True},
        {"rollout_sharing": False, "gradient_accumulation_steps": 2, "bonus_estimator": "entropy"},
        {"regularizer": "loss", "num_iterations": 2},
        {"bonus_estimator": "exact", "gradient_checkpointing": True},
        {"algorithm": "grpo", "loss_type": "dr_grpo"},
        {"algorithm": "kl_cov", "num_iterations": 2, "beta": 0.1},
        {"algorithm": "ce_gppo", "num_iterations": 2, "mask_truncated_completions": True},
        {"algorithm": "adaptive_entropy"},
        {"algorithm": "forking_tokens"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_one_trainer_with_and_without_padding(tmp_path, options, fused):
    """The same rollouts, metrics and weights."""
    results = []
    for packed in (False, True):
        run = packed_trainer(
            tmp_path / str(packed), packed, model=tiny.model().double(), fused_lm_head=fused, adam_epsilon=1e-3,
            per_device_train_batch_size=7, **options,
        )  # fmt: skip
        run.train()
        results.append((weights(run), lines(tmp_path / str(packed))))
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, rtol=1e-9, atol=1e-11)
    for padded, packed in zip(results[0][1], results[1][1], strict=True):
        assert packed == pytest.approx(padded, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_those_of_padded_batches(tmp_path, fused):
    """Of one update, parameter by parameter, with ratios away from 1."""
    results = []
    for packed in (False, True):
        run = packed_trainer(
            tmp_path, packed, model=tiny.model().double(), fused_lm_head=fused, beta=0.1, entropy_coef_normal=0.1
        )
        rollout = run.sample()
        generator = torch.Generator().manual_seed(0)
        random = [torch.randn(rollout.mask.shape, generator=generator, dtype=torch.float64) for _ in range(3)]
        rows, ones = [0, 30, 7, 23, 11], torch.ones(rollout.mask.shape, dtype=torch.float64)
        old, ref = (-2 + 0.3 * noise for noise in random[1:])
        out = run.update.backward(rollout, rows, random[0], old, ref, ones)
        mask = rollout.mask[rows, : out.logprobs.shape[1]]
        results.append({name: p.grad for name, p in run.policy.bare.named_parameters()})
        results[-1] |= {name: x * mask if x.dim() else x for name, x in out._asdict().items()}
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    assert results[0]["clipped"].any()


NO_POSITIONS, MIXED = "its forward takes no position_ids", "one sequence reads the other"
WITHOUT_HEAD_DIM = {name: value for name, value in SIZES.items() if name != "head_dim"}
STATE = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {f"linear_{kind}": 2 for kind in ("num_value_heads", "num_key_heads")}
LINEAR |= {f"linear_{kind}": 8 for kind in ("key_head_dim", "value_head_dim")}
LINEAR |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
UNFIT = {  # family: settings, and what is wrong with it
    "Bloom": (SMALL | {"n_layer": 1, "n_head": 2}, NO_POSITIONS),
    "Mamba": (SMALL | {"num_hidden_layers": 1}, NO_POSITIONS),
    "Lfm2": (SIZES | {"layer_types": ["conv", "full_attention"]}, MIXED),
    "Qwen3Next": (SIZES | LINEAR | {"layer_types": ["linear_attention", "full_attention"]}, MIXED),
    "FalconH1": (SIZES | STATE | {"mamba_d_ssm": 32}, MIXED),
    "Bamba": (WITHOUT_HEAD_DIM | STATE | {"attn_layer_indices": [1]}, MIXED),
    "RecurrentGemma": (WITHOUT_HEAD_DIM, MIXED),
    # attention alone, but the mask does not know of the positions
    "OPT": (
        SMALL | {"num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 16},
        MIXED,
    ),
    "GptOss": (SIZES | EXPERTS | {"layer_types": ["sliding_attention", "full_attention"]}, MIXED),
}


if version.parse(transformers.__version__) < version.parse(
    "5.24"
):  # since then it adds its biases to a mask that knows
    UNFIT["Falcon"] = (SMALL | {"num_hidden_layers": 1, "num_attention_heads": 2, "alibi": True}, MIXED)


@pytest.mark.parametrize("family", UNFIT)
def test_models_that_mix_sequences_are_turned_down(family):
    settings, fault = UNFIT[family]
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**settings))
    with pytest.raises(ValueError, match=f"packed_batches=True: {family}ForCausalLM cannot be given.*{fault}"):
        Policy(model, tiny.tokenizer(), packed=True)
    assert model.training
    assert Policy(model, tiny.tokenizer()).packed is False


def test_positions_that_are_not_used_are_seen():
    """Sequences are kept apart, but the second one's positions go on from the first one's."""

    class Ignores(type(made("gpt2"))):
        def forward(self, input_ids, position_ids=None, attention_mask=None, **kwargs):
            places = torch.arange(input_ids.shape[1])
            if position_ids is not None:
                sequence = (position_ids[0] == 0).cumsum(0)
                apart = sequence[:, None] == sequence
                attention_mask = (apart & (places[:, None] >= places))[None, None]
            return super().forward(input_ids, position_ids=places[None], attention_mask=attention_mask, **kwargs)

    model = made("gpt2")
    model.__class__ = Ignores
    with pytest.raises(ValueError, match="a sequence has other logits than alone"):
        Policy(model, tiny.tokenizer(), packed=True)


def test_checkpointing_keeps_sequences_apart(tmp_path):
    model = tiny.model()
    enable_checkpointing(model)
    padded, packed = policies(model)
    config = tiny.config(tmp_path)
    rollout = rolled(padded, config)
    model.train()
    batches = [list(range(9))]
    expected, found = (score(policy, rollout, batches, 1.0) for policy in (padded, packed))
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-4, atol=1e-5)
