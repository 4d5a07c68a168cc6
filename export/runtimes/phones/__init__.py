"""What the runtimes of phones are built and run with: converters as processes, and files of theirs read back."""
