"""Commands that look at a spec, a program or this machine and change nothing."""
