"""Where the trainer's time and memory go."""
