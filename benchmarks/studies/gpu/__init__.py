"""Everything that needs a GPU, once, within nine minutes."""
