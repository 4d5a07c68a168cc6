"""Which tensors of a region are written: the choice, its price, and what stays and why."""
