"""Policy Split on the engines of others: one module each, imported only by who uses it."""
