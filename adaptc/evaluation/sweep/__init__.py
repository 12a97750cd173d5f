"""Tables of quality and speed over shares of skipped blocks, by every policy: `adaptc eval --sweep`."""
