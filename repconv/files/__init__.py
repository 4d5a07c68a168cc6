"""Files read and written: whole, screened, fingerprinted."""
