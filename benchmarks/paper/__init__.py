"""One script for each table or figure of the paper that this machine can carry."""
