"""What is common to decoders on every device: budgets, routes, the router, image inserts."""
