"""From a spec to a bundle: the driver, the list of passes, cached stages, tuning and publishing."""
