#!/usr/bin/env bash
# Policy Split on verl: bash examples/verl/run.sh DATA_FOLDER MODEL [overrides ...]
# DATA_FOLDER has verl's train.parquet and test.parquet: data_source, prompt, ability, reward_model, extra_info.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
data="$1" model="$2"
shift 2
# imported in every process, behind modules that you name: registers the agent loop, the trainer, the estimator, the loss;
# said to Ray too, as its processes on other machines do not see this environment
export VERL_USE_EXTERNAL_MODULES="${VERL_USE_EXTERNAL_MODULES:+$VERL_USE_EXTERNAL_MODULES,}policy_split.integrations.verl"
python -m verl.trainer.main_ppo --config-path="$here" --config-name=policy_split \
    data.train_files="$data/train.parquet" data.val_files="$data/test.parquet" \
    data.train_batch_size=64 data.max_prompt_length=512 data.max_response_length=2048 \
    actor_rollout_ref.model.path="$model" \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 actor_rollout_ref.actor.use_dynamic_bsz=True \
    "++ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES='$VERL_USE_EXTERNAL_MODULES'" \
    trainer.n_gpus_per_node=8 trainer.nnodes=1 "$@"
