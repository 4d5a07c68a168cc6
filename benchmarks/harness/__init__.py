"""`repconv bench`: subjects of any source and backend, measured in turns."""
