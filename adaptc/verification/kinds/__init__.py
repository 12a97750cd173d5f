"""How a bundle of each kind is verified: one decoder, with skip gates, with routes, with modalities."""
