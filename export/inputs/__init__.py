"""Images that artefacts are calibrated and compared on."""
