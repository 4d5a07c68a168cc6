"""Many searches, and retrainings of what they find: planned, shared out, gone on with, and compared."""
