"""From a request to its result: requests, sequences, sessions, the decoding loop, scoring."""
