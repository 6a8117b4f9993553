"""Settings that move with what a run measures: eta under target_kl, and the entropy coefficient of a baseline."""

import math
from dataclasses import replace

from accelerate import Accelerator

from policy_split.algorithms.kl_target import HeldEta
from policy_split.config import PolicySplitConfig
from policy_split.rollouts.metrics import means, rollout_sums
from policy_split.rollouts.rollout import Rollout
from policy_split.run_folder.checkpoints import Progress

KLS = ("policy_split/exact_kl_high_normal", "policy_split/kl_high_normal")  # the exact one where there is one


class Controls:
    """What moves is a part of the progress, and so of a checkpoint; it is the same in every process."""

    def __init__(self, config: PolicySplitConfig, progress: Progress, accelerator: Accelerator):
        self.config, self.progress, self.accelerator = config, progress, accelerator

    def of_step(self) -> PolicySplitConfig:
        """The settings with the eta of the next step."""
        config = self.config
        if config.target_kl is None:
            return config
        return replace(config, eta=self._held().applied(config.target_kl), target_kl=None)

    def finished(self, metrics: dict[str, float], used: PolicySplitConfig) -> dict[str, float]:
        """After a step of those metrics over all processes: eta moves; returns the eta that was used, for the log."""
        config, progress = self.config, self.progress
        if config.target_kl is None:
            return {}
        kl = next((metrics[name] for name in KLS if name in metrics), math.nan)
        held = self._held().after(kl, config.target_kl, config.eta)
        progress.eta, progress.kl, progress.kl_mean, progress.kl_slow_mean = held
        return {"policy_split/eta": used.eta}

    def _held(self) -> HeldEta:
        progress = self.progress
        eta = progress.eta or self.config.eta  # 0: before the first step
        return HeldEta(eta, progress.kl, progress.kl_mean, progress.kl_slow_mean)

    def entropy_coef(self, rollout: Rollout) -> float:
        """Of the entropy term, where the algorithm moves it by the entropy of the rollout; 0 where it does not."""
        algorithm, progress = self.config.chosen_algorithm, self.progress
        if algorithm.entropy_control is None:
            return 0.0
        entropy = means(rollout_sums(rollout), self.accelerator)["normal/entropy"]
        control = algorithm.entropy_control(algorithm.settings)
        control.load_state_dict({"coefficient": progress.entropy_coef})
        used = control.update(entropy)
        progress.entropy_coef = control.coefficient
        return used
