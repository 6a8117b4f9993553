"""Memory and time of one training step, from the numbers of a model, a batch, a machine and the number of processes.

Pure functions, in bytes and seconds of one process. Weights, gradients and AdamW's two moments are float32, 16 bytes a
parameter; the model computes in `compute_bytes` a number (2: bfloat16, as --bf16 does, 4: float32). A question has n
responses of each mode, and each response is trained under both prompts: 2n to draw, 4n rows to train.
"""

from typing import NamedTuple


class Model(NamedTuple):
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool = False


class Batch(NamedTuple):
    questions: int  # of all processes
    generations: int  # n
    prompt: float  # tokens
    response: float  # tokens
    micro_rows: int  # rows of a micro-batch
    generation_rows: int = 2**31  # responses of a generate call


class Setup(NamedTuple):
    ranks: int = 1
    sharded: bool = False  # FSDP2; else DDP
    checkpointing: bool = False
    compute_bytes: int = 2
    fused_head: bool = True
    chunk_bytes: float = 1.25 * 2**30  # of logits, with the fused head
    first_pass: bool = False  # the update scores its own rows
    shared_prompts: bool = False  # a prompt once for the n rows of a mode that it writes, and the 2n that it trains
    live: float = 1.0  # share of the questions whose rewards differ: the others are not trained, nor scored


class Machine(NamedTuple):
    flops: float  # of GEMMs, per second
    bandwidth: float  # of its memory, bytes per second
    link: float  # what a process sends to others, bytes per second
    call: float = 0.0  # seconds to start one layer's kernels
    overlap: bool = True  # whether communication runs beside computation


def layer_parameters(m: Model) -> int:
    attention = 2 * m.width * m.head_dim * (m.heads + m.kv_heads)  # q and o, k and v
    return attention + 3 * m.width * m.mlp + 2 * m.width


def parameters(m: Model) -> int:
    return m.layers * layer_parameters(m) + m.vocabulary * m.width * (1 if m.tied else 2) + m.width


def layer_flops(m: Model, context: float) -> float:
    """Of one token's forward through one layer, which sees half of the context on average."""
    return 2 * (layer_parameters(m) - 2 * m.width) + 4 * m.heads * m.head_dim * context / 2


def saved_elements(m: Model) -> int:
    """Numbers that one layer keeps of one token until backward; attention keeps no matrix of scores.

    6 of the width (each norm's input, normalised input and output), 5 of the queries (before and after their norm,
    rotated, attended, in the order that the next product wants), 4 of the keys and values, 4 of the MLP.
    """
    return 6 * m.width + (5 * m.heads + 4 * m.kv_heads) * m.head_dim + 4 * m.mlp


def rows(b: Batch, s: Setup) -> float:
    return 4 * b.generations * b.questions / s.ranks


def micro_batches(b: Batch, s: Setup) -> int:
    return -(-int(rows(b, s)) // b.micro_rows)


def activation_bytes(m: Model, b: Batch, s: Setup) -> float:
    """Of one micro-batch: of every layer, or its input alone and one layer that is computed anew."""
    tokens = min(b.micro_rows, rows(b, s)) * (b.prompt + b.response)
    whole = saved_elements(m) * s.compute_bytes
    layers = m.layers * m.width * s.compute_bytes + whole if s.checkpointing else m.layers * whole
    return tokens * layers


def head_bytes(m: Model, b: Batch, s: Setup) -> float:
    """Of the LM head's loss: a chunk of logits and the weight's gradient, or N x V logits and theirs; float32."""
    logits = min(b.micro_rows, rows(b, s)) * b.response * m.vocabulary * 4
    return min(s.chunk_bytes, logits) + 4 * m.vocabulary * m.width if s.fused_head else 2 * logits


def cache_bytes(m: Model, b: Batch, s: Setup) -> float:
    """Keys and values of a generate call's responses at their end, and the logits of one position, three times."""
    responses = min(rows(b, s) / 2, b.generation_rows)
    cache = (b.prompt + b.response) * 2 * m.layers * m.kv_heads * m.head_dim * s.compute_bytes
    return responses * (cache + 3 * 4 * m.vocabulary)


def memory(m: Model, b: Batch, s: Setup) -> dict[str, float]:
    """Bytes of a process: what is always there, what generation and what the update need beside it, and the peak.

    DDP has the gradients twice, in the parameters and in the buckets that it sends; FSDP2 gathers the whole model to
    generate, and in the update two layers, embedding and LM head. A model that computes in bfloat16 without FSDP2 has
    its weights in both dtypes.
    """
    p, share = parameters(m), s.ranks if s.sharded else 1
    states = 12 * p / share  # weights and two moments
    gradients = (8 if s.ranks > 1 and not s.sharded else 4) * p / share
    compute = s.compute_bytes * p if s.sharded or s.compute_bytes != 4 else 0
    units = s.compute_bytes * 2 * (2 * layer_parameters(m) + 2 * m.vocabulary * m.width)  # and their gradients
    gathered = min(units, 2 * compute) if s.sharded else compute
    generation = compute + cache_bytes(m, b, s)
    update = gradients + gathered + activation_bytes(m, b, s) + head_bytes(m, b, s)
    optimizer = gradients  # AdamW, fused, makes nothing on its way
    peak = states + max(generation, update, optimizer)
    return {"states": states, "generation": generation, "update": update, "optimizer": optimizer, "peak": peak}


def _layers_seconds(m: Model, tokens: float, context: float, s: Setup, machine: Machine) -> float:
    """A forward of the layers: GEMMs, and what is written by one kernel and read by the next."""
    moved = 2 * saved_elements(m) * s.compute_bytes
    return m.layers * tokens * (layer_flops(m, context) / machine.flops + moved / machine.bandwidth)


def _head_seconds(m: Model, tokens: float, machine: Machine) -> float:
    """One GEMM of the LM head, and its float32 logits written and read."""
    return tokens * m.vocabulary * (2 * m.width / machine.flops + 8 / machine.bandwidth)


def generation_seconds(m: Model, b: Batch, s: Setup, machine: Machine) -> float:
    """The prompts once, then one token of every response at a time: each reads all weights and the cache so far.

    bfloat16 without FSDP2 reads float32 weights, writes and reads their bfloat16 copies: 8 bytes a parameter.
    """
    p, responses = parameters(m), min(rows(b, s) / 2, b.generation_rows)
    prompts = responses * b.prompt / (b.generations if s.shared_prompts else 1)
    calls = rows(b, s) / 2 / responses
    weight_bytes = s.compute_bytes if s.sharded or s.compute_bytes == 4 else 8
    cache = responses * (b.prompt + b.response / 2) * 2 * m.layers * m.kv_heads * m.head_dim * s.compute_bytes
    sampling = responses * 6 * 4 * m.vocabulary / machine.bandwidth
    read = (weight_bytes * p + cache) / machine.bandwidth
    token = max(read, responses * 2 * p / machine.flops) + sampling + m.layers * machine.call
    return calls * (_layers_seconds(m, prompts, b.prompt, s, machine) + b.response * token)


def seconds(m: Model, b: Batch, s: Setup, machine: Machine) -> dict[str, float]:
    """Seconds of a step's parts; "communication" is what all of it would take alone, of which overlap hides some."""
    p, share, length = parameters(m), s.ranks if s.sharded else 1, b.prompt + b.response
    r, part = s.live * rows(b, s), (s.ranks - 1) / s.ranks / machine.link
    micro = -(-int(r) // b.micro_rows)
    prompts = b.prompt / (2 * b.generations) if s.shared_prompts else b.prompt
    forward = _layers_seconds(m, r * (prompts + b.response), length, s, machine)
    head, calls = _head_seconds(m, r * b.response, machine), micro * m.layers * machine.call
    gather, reduce = s.compute_bytes * p * part, 4 * p * part
    if not s.sharded:
        gathering, scoring_sent, update_sent = 0.0, 0.0, 2 * reduce  # one all-reduce
    else:  # gathered for generation once, in scoring and twice in the update for every micro-batch
        gathering, scoring_sent, update_sent = gather, micro * gather, micro * (2 * gather + reduce)

    def together(computed: float, sent: float) -> float:
        return max(computed, sent) if machine.overlap else computed + sent

    scoring, again = forward + head + calls, 0.0
    if s.first_pass:  # of it the LM head alone is left, inside the update
        scoring, scoring_sent, again = 0.0, 0.0, head
    parts = {
        "generation": generation_seconds(m, b, s, machine) + gathering,
        "scoring": together(scoring, scoring_sent),
        "update": together((4 if s.checkpointing else 3) * forward + 3 * (head + calls) + again, update_sent),
        "optimizer": 40 * p / share / machine.bandwidth,  # the norm, the clipping, AdamW: 10 reads and writes
    }
    return parts | {"step": sum(parts.values()), "communication": gathering + scoring_sent + update_sent}
