"""An OpenAI-compatible HTTP server on sessions: the application, and the process that runs it."""
