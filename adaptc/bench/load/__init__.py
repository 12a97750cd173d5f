"""A load generator for servers of OpenAI's API: requests at their times, and the times of answers."""
