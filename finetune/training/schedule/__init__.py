"""The learning rate and the duration of a run, chosen before its first step."""
