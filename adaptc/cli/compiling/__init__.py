"""Commands that make or change a bundle, or train what goes into one."""
