"""From a request to an answer: requests, sessions, the decode loop, scoring."""
