"""What the server tells of itself: metrics, logs with request ids, spans."""
