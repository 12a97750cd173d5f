"""Training of skip gates, stitches, routers and modality gates."""
