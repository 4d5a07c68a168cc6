"""Two artefacts beside each other: whether they agree, and where they first differ."""
