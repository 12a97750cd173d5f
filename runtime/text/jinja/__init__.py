"""Chat templates as strangers' programs: Jinja in a sandbox, with limits of steps, time and text."""
