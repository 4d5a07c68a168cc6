"""Reports as one HTML file, and the pictures in them."""
