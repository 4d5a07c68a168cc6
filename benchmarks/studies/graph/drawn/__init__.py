"""Random networks of pieces, each spelled as some author spells it."""
