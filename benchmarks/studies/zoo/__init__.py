"""A network of every convolutional family of three libraries: what fusing leaves, whether it is right, the cost."""
