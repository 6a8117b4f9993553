"""The LM head from hidden states: ours, torch and the peers, checked, then timed beside three bare GEMMs."""
