"""Policy Split on verl (0.9 and newer, `pip install policy-split[verl]`); begin with `trainer.py`.

VERL_USE_EXTERNAL_MODULES=policy_split.integrations.verl imports this folder, which registers what `trainer` has.
"""

from policy_split.extras import check_extra

check_extra("verl", "policy_split.integrations.verl")

from . import trainer  # noqa: E402, F401
