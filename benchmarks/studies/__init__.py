"""Scripts that measure, each with committed results."""
