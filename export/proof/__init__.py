"""What is recorded of an artefact: how far it is from its network, and what that may be."""
