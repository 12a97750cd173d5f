"""What clients and the server say to each other: bodies and their schemas, errors, events."""
