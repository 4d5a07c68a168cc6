"""What a user names: checkpoints, state dicts, networks by name."""
