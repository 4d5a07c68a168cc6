"""What `the same network` means, and what was done and proved: it knows no file format."""
