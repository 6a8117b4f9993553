"""Policy Split on TRL's GRPO trainer (TRL 1.16 and newer, `pip install policy-split[trl]`); begin with `trainer.py`."""

from policy_split.extras import check_extra

check_extra("trl", "policy_split.integrations.trl")

from .config import PolicySplitGRPOConfig  # noqa: E402
from .kernels import use_fused_kernels  # noqa: E402
from .trainer import PolicySplitGRPOTrainer  # noqa: E402

__all__ = ["PolicySplitGRPOConfig", "PolicySplitGRPOTrainer", "use_fused_kernels"]
