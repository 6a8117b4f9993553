"""Run by test_trl_trainer in two processes (torchrun): a question whose modes lie on different ranks.

With 4 responses on each rank and 8 to a question, rank 0 writes all of the normal mode and rank 1 all of the other.
"""

import sys
import tempfile
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

import tiny  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from trl_runs import trainer  # noqa: E402

from policy_split import dual_mode_advantages  # noqa: E402
from policy_split.integrations.interleaved import blocks_of, rows_of  # noqa: E402


def padded(x, length):
    return torch.nn.functional.pad(x, (0, length - x.shape[1]))


def main():
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(folder, per_device_train_batch_size=4, max_steps=2)
        rank = run.accelerator.process_index
        shared, kept = run._shared, []
        run._shared = lambda output: kept.append((shared(output), run._rewards)) or kept[-1][0]
        scores, seen = run._scores, []
        run._scores = lambda model, rows: seen.append(scores(model, rows)) or seen[-1]
        run.train()
        batch, rewards = kept[0]
        everywhere = [None, None]
        old = torch.cat([logprobs for logprobs, _ in seen[:2]])
        dist.all_gather_object(everywhere, (batch["completion_mask"], old, batch["advantages"]))
        length = max(x[0].shape[1] for x in everywhere)
        mask, old, advantages = (torch.stack([padded(x[k], length) for x in everywhere]) for k in range(3))  # (2, 8, T)
        blocks = [blocks_of(x[:, :4].flatten(0, 1), x[:, 4:].flatten(0, 1), 4) for x in (old, mask)]
        options = run.args.bonus_options
        expected, _ = dual_mode_advantages(
            blocks_of(rewards, rewards, 4), *blocks, num_prompts=1, num_generations=4, **options
        )
        own, twin = rows_of(expected, 4)
        torch.testing.assert_close(advantages[:, :4].flatten(0, 1), own)
        torch.testing.assert_close(advantages[:, 4:].flatten(0, 1), twin)
        assert own.any(), "rewards of the tiny model were all equal"
        assert set(run._row_modes) == {rank}
        first = run.state.log_history[0]
        assert abs(first["reward"] - (first["normal/reward"] + first["high_entropy/reward"]) / 2) < 1e-6
        weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
        both = [torch.empty_like(weights) for _ in range(2)]
        dist.all_gather(both, weights)
        assert torch.equal(*both)
        assert not torch.equal(weights, torch.cat([p.detach().flatten() for p in tiny.model().parameters()]))
    dist.barrier()
    dist.destroy_process_group()
    print("done", file=sys.stderr)


if __name__ == "__main__":
    main()
