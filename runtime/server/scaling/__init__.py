"""Several replicas behind one entrance: which of them answers a request, and what happens when one is lost."""
