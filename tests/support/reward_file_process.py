"""A script, not started by -m: loads rewards by name, calls them, prints what they return; one line of JSON each."""

import json
import sys

from policy_split.rewards.loading import load_reward

if __name__ == "__main__":
    for spec in sys.argv[1:]:
        print(json.dumps(load_reward(spec)(completions=["x", "yy"])), flush=True)
