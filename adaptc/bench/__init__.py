"""How fast a bundle is, beside other engines and under a load of jobs."""
