"""The comparison of algorithms on the built-in task: same warm start, same number of responses, several seeds."""
