"""Networks as programs of torch.export, for runtimes that are built from those."""
