"""Is a bundle what it should be: each part of it is compared with what others than adaptc make of its source."""
