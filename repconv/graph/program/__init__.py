"""Programs of torch.export: read, planned, written, proven."""
