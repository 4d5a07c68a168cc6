"""How much the proof sees."""
