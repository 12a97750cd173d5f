"""What requests run on: settings, models by name, and who is let in."""
