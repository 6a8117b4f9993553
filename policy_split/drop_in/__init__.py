"""Functions under the names and signatures that users of other libraries have: one import line changes.

`from policy_split.drop_in.trl import selective_log_softmax` stands for `from trl.trainer.utils import ...`,
`from policy_split.drop_in.verl import logprobs_from_logits` for `from verl.utils.torch_functional import ...`.
Neither library is imported.
"""
