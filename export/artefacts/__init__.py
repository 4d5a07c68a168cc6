"""What is built and what runs, as values: whichever runtime it is of."""
