"""Proof that a fused program is the one it was made of."""
