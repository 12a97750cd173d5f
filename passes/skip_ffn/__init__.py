"""FFN-SkipLLM: feed-forward blocks behind gates, and the conditionals they become."""
