"""Networks and figures that others published."""
